"""What the shell completes behind a command, beside what typer has for it: flags, and the names of files."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from typer.core import TyperCommand

VALUE = """    COMPREPLY=()
    [[ ${COMP_WORDS[COMP_CWORD]} != = && ! ${COMP_WORDS[COMP_CWORD-1]} =~ ^(=|--.+)$ ]] || return 0
"""
"""Offers nothing for a value, so that bash looks for a file; bash takes ``key=value`` for three words."""
NO_SPACE = "    [[ $COMPREPLY != *= ]] || compopt -o nospace 2>/dev/null\n"


class Keyed(TyperCommand):
    """A command whose keys are completed as flags, too: typer knows only options that are declared."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Flags that begin like what was typed."""
        keys = self.params[0].shell_complete(ctx, incomplete.lstrip("-"))
        return [type(key)(f"--{key.value.removesuffix('=')}") for key in keys]


def complete_values_in_bash() -> None:
    """Have bash complete the name of a file behind ``key=`` and ``--key``, and add no space behind a completed
    ``key=``: typer's script offers keys in all places, and has no setting for either."""
    begin, end = "    local IFS=", "    return 0\n"
    with suppress(ImportError, AttributeError, KeyError):  # private, and elsewhere in another version
        from typer._completion_shared import _completion_scripts as scripts

        asked = scripts["bash"].replace(begin, VALUE + begin, 1)
        scripts["bash"] = (NO_SPACE + end).join(asked.rsplit(end, 1))
