"""Links out of docs/ lead to files of the checkout, which a site does not have: there they become the file's path."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with each page.

    Raises:
      FileNotFoundError: a page links to a file that the checkout does not have.
    """

    def path_alone(link: re.Match[str]) -> str:
        if not (ROOT / link[2]).exists():
            raise FileNotFoundError(f"{page.file.src_path}: links to {link[2]}, which does not exist")
        return f"`{link[2]}`"

    return LINK.sub(path_alone, markdown)
