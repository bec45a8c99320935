"""``make figures``: the tables and pictures of README and docs, from the results that lie under ``runs``.

Results that are absent are named, and their table or picture stays as it is. The sentences beside a table, and what a
picture is called, are people's to write: a line says on what was measured, so that they can.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from specexit.bench.results import Results, read_results
from specexit.errors import InputError
from specexit.report.page import report
from specexit.report.readme import BEGIN, END, family_table, table, write_between
from specexit.schemas.report import ReportConfig


@dataclass(frozen=True)
class Place:
    """Where a table stands between two marks, and which results it is of."""

    results: str
    page: str
    begin: str
    end: str
    table: Callable[[Results], str] = table


PLACES = (
    Place("runs/demo/results.json", "README.md", BEGIN, END),
    Place("runs/field/greedy/results.json", "docs/evidence.md", BEGIN, END),
    Place(
        "runs/field/sampled/results.json",
        "docs/evidence.md",
        "<!-- results, sampled: make figures -->",
        "<!-- end of sampled results -->",
    ),
    Place(
        "runs/families/results.json",
        "docs/method.md",
        "<!-- results by family: make figures -->",
        "<!-- end of results by family -->",
        family_table,
    ),
)

PICTURES = ("accuracy-against-thinking", "how-much-hangs-on-the-threshold", "the-best-cut")
"""Of the demo's report, those that README and docs show."""


def regenerate(root: Path) -> Iterator[str]:
    """Write every table and picture whose results are there; yields a line on each.

    Args:
      root: with ``runs``, ``docs`` and ``README.md``.

    Raises:
      ReadmeError: a page lacks its marks.
      ResultsError, ReportError: what is there cannot be read.
    """
    for place in PLACES:
        if (root / place.results).exists():
            found = read_results(root / place.results)
            write_between(root / place.page, place.begin, place.end, place.table(found))
            where = f"measured on {_where(found)}: see that the sentences beside it say so, and the commit"
            yield f"{place.page}: table of {place.results}, {found.n} problems, {where}"
        else:
            yield f"{place.results} is absent: {place.page} keeps its table"
    yield from _pictures(root / "runs" / "demo", root / "docs" / "images")


def _where(results: Results) -> str:
    processor, cores = (results.hardware.get(key, "unknown") for key in ("processor", "cores"))
    versions = (f"{name} {version}" for name, version in results.versions.items() if name.startswith("vllm"))
    return ", ".join([f"{processor} (cores: {cores})", *versions])


def _pictures(demo: Path, images: Path) -> Iterator[str]:
    given = {
        "bench": demo / "bench",
        "traces": demo / "labelled" / "test",
        "scores": demo / "scores" / "test",
        "simulation": demo / "simulation.json",
        "draft": demo / "draft",
    }
    if absent := [str(path) for path in given.values() if not path.exists()]:
        yield f"{', '.join(absent)} absent: {images} keeps its pictures"
        return
    with tempfile.TemporaryDirectory(prefix="specexit-pictures-") as scratch:
        drawn = Path(scratch) / "images"
        report(ReportConfig.model_validate(given | {"out": Path(scratch) / "report.html", "images": drawn}))
        images.mkdir(parents=True, exist_ok=True)
        for name in PICTURES:
            file = drawn / f"{name}.svg"
            if file.exists():
                shutil.copy(file, images / file.name)
                yield f"{images / file.name}: drawn from {demo}: see that pages name its commit"
            else:
                yield f"{demo} has nothing to draw {name} from: {images} keeps its picture"


if __name__ == "__main__":
    try:
        for line in regenerate(Path.cwd()):
            print(line)
    except InputError as error:
        sys.exit(f"error: {error}")
