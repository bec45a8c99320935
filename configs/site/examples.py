"""Docstrings say "Example:", which griffe takes for a remark: as "Examples:" it shows what is typed as code."""

import re
from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Called by mkdocstrings with each name that a page shows."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rename the section."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
