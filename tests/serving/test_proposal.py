"""What pages say of the code: `docs/upstream-proposal.md` of the hook table, `serving-measured.md` of the tests."""

from __future__ import annotations

import re
import tomllib

from specexit.config import REPOSITORY
from torch_specexit.plugin.compat.frontend_hooks import FRONTEND_HOOKS
from torch_specexit.plugin.compat.hooks import ENGINE_HOOKS, V1_HOOKS, V2_HOOKS
from torch_specexit.plugin.compat.repairs import REPAIRS


def test_the_numbers_of_hooks_are_those_of_the_table():
    page = (REPOSITORY / "docs" / "upstream-proposal.md").read_text()
    for runner, worker in (("V1", V1_HOOKS), ("V2", V2_HOOKS)):
        counts = [len(worker), len(ENGINE_HOOKS), len(FRONTEND_HOOKS)]
        (row,) = re.findall(rf"^\| {runner} today(?:, up to [0-9.]+)? \|(.*)\|$", page, re.M)
        assert [int(cell) for cell in row.split("|")] == [*counts, sum(counts)]


def test_what_the_proposal_says_of_repairs_and_entry_points_is_so():
    """A repair used to be left out, and an entry point named that the package does not have."""
    page = " ".join((REPOSITORY / "docs" / "upstream-proposal.md").read_text().split())
    assert len(REPAIRS) == 1
    assert "has one more, whatever its draft: the repair" in page
    points = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"]
    assert list(points) == ["vllm.general_plugins"]
    assert "The entry point `vllm.general_plugins`, the only one that the package has" in page


def test_every_test_that_the_page_of_the_reading_names_exists():
    """Among them one at least for each finding of the review."""
    page = (REPOSITORY / "docs" / "serving-measured.md").read_text()
    rows = [line for line in page.splitlines() if re.match(r"\| .* \| `test_\w+::", line)]
    assert len(rows) == 25
    for module, test in re.findall(r"`(test_\w+)::(test_\w+)`", page):
        assert f"\ndef {test}(" in (REPOSITORY / "tests" / "serving" / f"{module}.py").read_text()
