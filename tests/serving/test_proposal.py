"""What `docs/upstream-proposal.md` says of the hook table."""

from __future__ import annotations

import re

from specexit.config import REPOSITORY
from torch_specexit.plugin.compat.frontend_hooks import FRONTEND_HOOKS
from torch_specexit.plugin.compat.hooks import ENGINE_HOOKS, V1_HOOKS, V2_HOOKS


def test_the_numbers_of_hooks_are_those_of_the_table():
    page = (REPOSITORY / "docs" / "upstream-proposal.md").read_text()
    for runner, worker in (("V1", V1_HOOKS), ("V2", V2_HOOKS)):
        counts = [len(worker), len(ENGINE_HOOKS), len(FRONTEND_HOOKS)]
        (row,) = re.findall(rf"^\| {runner} today \|(.*)\|$", page, re.M)
        assert [int(cell) for cell in row.split("|")] == [*counts, sum(counts)]
