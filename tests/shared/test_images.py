"""The Dockerfiles say what the project has: no test builds an image, but what they name must exist."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
IMAGES = sorted((ROOT / "configs" / "images").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", path.read_text())
    return [
        (line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line and not line.startswith("#")
    ]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_what_an_image_names_exists(path: Path) -> None:
    assert IMAGES
    found = instructions(path)
    names = [name for name, _ in found]
    assert set(names) <= {"ARG", "FROM", "COPY", "RUN", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert names[-1] in ("ENTRYPOINT", "CMD")
    text = path.read_text()
    assert f"-f configs/images/{path.name}" in text
    for extras in re.findall(r"/src\[([a-z,-]+)\]", text):
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    for target in re.findall(
        r"make (\S+)", " ".join(value for name, value in found if name == "RUN" and "make ." in value)
    ):
        assert f"$(VENV)/{target.removeprefix('.venv/')}:" in (ROOT / "Makefile").read_text()


def test_nothing_of_this_checkout_gets_into_an_image_but_its_sources() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv*", "runs"} <= set(ignored)


def test_weights_that_lie_where_the_shipped_configs_look_for_them_get_into_no_image_and_no_commit() -> None:
    """A checkout with ``models/Qwen3-4B-Thinking-2507`` made an image 8 GB larger."""
    files = [path for folder in ("recipes", "targets") for path in (ROOT / "configs" / folder).glob("*.yaml")]
    named = [yaml.safe_load(path.read_text()).get(key, "") for path in files for key in ("path", "init_from")]
    places = {place.split("/")[0] for place in named if "/" in place}
    assert {"models", "drafts"} <= places
    assert places <= set((ROOT / ".dockerignore").read_text().split())
    assert {f"/{place}/" for place in places} - {"/runs/"} <= set((ROOT / ".gitignore").read_text().split())


def test_a_python_of_an_image_is_one_that_the_package_takes() -> None:
    low, high = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    for path in IMAGES:
        for minor in re.findall(r"FROM python:3\.(\d+)", path.read_text()):
            assert int(low) <= int(minor) < int(high)


def test_an_image_with_constraints_has_the_python_that_they_bind() -> None:
    """On another one pip takes the newest of everything."""
    bound = set(re.findall(r'python_version == "([\d.]+)"', (ROOT / "constraints.txt").read_text()))
    constrained = {path.stem: path.read_text() for path in IMAGES if "/src/constraints.txt" in path.read_text()}
    assert "training" in constrained
    for text in constrained.values():
        assert set(re.findall(r"FROM python:([\d.]+)-", text)) == bound


def test_the_demo_s_image_has_what_the_demo_needs_of_the_system() -> None:
    """Its Python is built from source, headers included; what ``setup.sh`` asks for besides has to be installed."""
    asked = set(re.findall(r"\|\| echo (\S+)", (ROOT / "setup.sh").read_text()))
    headers = '"python${release%.*}-dev"'
    assert asked == {"libnuma1", "g++", headers}
    image = (ROOT / "configs" / "images" / "demo.Dockerfile").read_text()
    installed = re.findall(r"--no-install-recommends ([\w+ -]*)", image)
    assert {*asked - {headers}, "make"} <= set(" ".join(installed).split())
