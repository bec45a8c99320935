"""Every link of a page leads somewhere, and every command of the Makefile and the table that a page names exists."""

import importlib
import re
from pathlib import Path

import pytest

from specexit import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text()) if link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES[:1] + PAGES[2:], ids=lambda page: page.name)
def test_commands_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"`specexit ([a-z][a-z-]*)", text)) | set(
        re.findall(r"^specexit ([a-z][a-z-]*)", text, re.M)
    )
    assert named <= set(cli.COMMANDS)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z][a-z-]*)", text)) <= targets


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in cli.COMMANDS if f"`specexit {name}`" not in text] == []


def test_what_the_gallery_shows_can_be_run() -> None:
    shown = re.findall(r"^\$ specexit ([a-z-]+) (.*)$", (ROOT / "docs" / "gallery.md").read_text(), re.M)
    assert len(shown) >= 8
    for name, arguments in shown:
        command = cli.COMMANDS[name]
        module, _, schema = command.schema.partition(":")
        fields = getattr(importlib.import_module(module), schema).model_fields
        assert {word.partition("=")[0] for word in arguments.split()} <= fields.keys(), name
