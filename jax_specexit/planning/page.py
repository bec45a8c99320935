"""``python -m jax_specexit.planning.page PAGE PLAN ...`` writes the table of docs/planning.md from plans.

Each plan is a ``plan.json`` in a folder that is named like its recipe; ``make plan-all`` writes them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from specexit.report.readme import write_between

BEGIN, END = "<!-- plans: make plan-all -->", "<!-- end of plans -->"

HEADINGS = {
    "recipe": "---",
    "step, GiB a chip": "---",
    "spare": "---:",
    "largest other program, GiB": "---",
    "step at least, s": "---:",
    "bound by": "---",
    "chip-hours at least": "---:",
    "exposed collectives, s": "---:",
    "step, estimate, s": "---:",
    "MFU, estimate": "---:",
    "compute, target in int8": "---:",
}


def table(plans: dict[str, dict[str, Any]]) -> str:
    """Plans by recipe as Markdown."""
    lines = [list(HEADINGS), list(HEADINGS.values()), *(_row(recipe, plan) for recipe, plan in plans.items())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(recipe: str, plan: dict[str, Any]) -> list[str]:
    hbm, guess, of = plan["hbm_gib"], plan["estimate"], plan["compute_seconds_of_target"]
    other = max(plan["others"], key=lambda name: plan["others"][name]["hbm_gib"]["total"])
    return [
        f"`{recipe}`",
        f"{hbm['total']:.1f} of {hbm['capacity']:.0f}",
        f"{100 * hbm['spare']:.0f} %",
        f"{plan['others'][other]['hbm_gib']['total']:.1f} ({other})",
        f"{plan['step_seconds']:.2f}",
        plan["binds"],
        f"{hours:.0f}" if (hours := plan["chip_hours"]) >= 10 else f"{hours:.2g}",
        f"{guess['seconds']['exposed']:.2f}",
        f"{guess['step_seconds']:.2f}",
        f"{100 * guess['mfu']:.0f} %",
        f"{100 * (of['int8'] / of['dtype'] - 1):+.0f} %",
    ]


def main(page: Path, files: list[Path]) -> None:
    """Write the table into the page.

    Raises:
      ReadmeError: the marks are not there.
    """
    write_between(page, BEGIN, END, table({file.parent.name: json.loads(file.read_text()) for file in files}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
