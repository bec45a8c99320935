"""A mark that several test files share."""

import os

import pytest

SLOW = pytest.mark.skipif("SPECEXIT_SLOW" not in os.environ, reason="a minute or two: make test-slow")
"""Left out of ``make test``: the other one of a pair, whose first one stays in it."""
