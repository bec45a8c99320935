"""What these tests compile runs for milliseconds, in this process and in those that they start."""

from collections.abc import Iterator

import jax
import pytest

from tests.jax.devices import QUICK_COMPILATION


@pytest.fixture(autouse=True, scope="module")
def quick_compilation() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK_COMPILATION.items():
            patch.setenv(name, value)
        yield
    jax.config.update("jax_disable_most_optimizations", False)
