"""Modules whose docstrings hold examples, which tests run."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def modules_with_examples(package: str) -> list[str]:
    """Names of a package's modules with an example in a docstring; none is imported to find them."""
    files = sorted(path for path in (ROOT / package).rglob("*.py") if ">>> " in path.read_text())
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
