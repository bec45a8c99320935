"""What docstrings of `jax_specexit` show is true."""

import doctest
import importlib

import pytest

from tests.examples import modules_with_examples


@pytest.mark.parametrize("name", modules_with_examples("jax_specexit"))
def test_examples_in_docstrings_are_true(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed
