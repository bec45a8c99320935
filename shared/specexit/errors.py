"""What a user can get wrong. The command line shows these as one line; anything else is a bug, with its traceback."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used; the message names the file, the field, the value and what was expected."""
