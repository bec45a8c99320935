"""Array shapes and argument types are checked while the tests run: jaxtyping's import hook with beartype.

The hook must be installed before any of our packages is imported, so it stands at the top of the first conftest. A
subprocess that a test starts (a vLLM engine, for one) runs unchecked, as a user's would.
"""

from jaxtyping import install_import_hook

install_import_hook(
    ["specexit", "jax_specexit", "torch_specexit"],
    # An int is welcome where a float is asked for, as PEP 484 has it.
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

import os  # noqa: E402
import signal  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from specexit.data.traces import Trace  # noqa: E402
from specexit.drafts.config import PLAIN_ARCHITECTURE, DraftConfig, SpecExitBlock  # noqa: E402
from specexit.drafts.directory import write_draft  # noqa: E402

# What is printed is read, and on a narrow terminal it breaks within what is looked for.
os.environ["COLUMNS"] = "80"

# A busy machine is no failure: no test may depend on how long an example takes.
settings.register_profile("specexit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("specexit")

DRAFT_SHAPE = {
    "hidden_size": 64,
    "target_hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 200,
    "draft_vocab_size": 120,
    "eagle_aux_hidden_state_layer_ids": (0, 2, 3),
    "num_aux_hidden_states": 3,
    "target_num_hidden_layers": 4,
}
"""Small, with every size different where EAGLE-3 allows it, so that a mix-up of axes cannot pass."""

DraftWriter = Callable[..., Path]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TMPDIR of the test's own."""
    folder = tmp_path / "TMPDIR"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def told_to_end(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What is called in the place of something has this process told to end there, as by a preemption's SIGTERM; the
    tests go on behind it."""

    def end(*_: object, **__: object) -> None:
        listener = signal.getsignal(signal.SIGTERM)
        assert callable(listener), "nobody listens"
        listener(signal.SIGTERM, None)

    monkeypatch.setattr(signal, "raise_signal", lambda _: None)
    return end


@pytest.fixture(scope="session")
def write_random_draft() -> DraftWriter:
    """``write(folder, source, seed=0, **shape)``: a draft directory with random weights; source None is plain."""

    def write(folder: Path, source: str | None, *, seed: int = 0, **shape: object) -> Path:
        block = SpecExitBlock(target="tiny-reasoner", source=source) if source else None
        kind = {} if source else {"architectures": (PLAIN_ARCHITECTURE,)}
        config = DraftConfig.model_validate(DRAFT_SHAPE | shape | kind | {"specexit": block})
        write_draft(folder, config, random_tensors(config, seed))
        return folder

    return write


def random_tensors(config: DraftConfig, seed: int) -> dict[str, np.ndarray]:
    """Weights of the size that training ends up with: unit-variance outputs, norms around 1."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(config.vocab_size, config.draft_vocab_size, replace=False))
    tensors = {}
    for name, shape in config.tensor_shapes().items():
        if name == "d2t":
            tensors[name] = (chosen - np.arange(config.draft_vocab_size)).astype(np.int64)
        elif name == "t2d":
            tensors[name] = np.isin(np.arange(config.vocab_size), chosen)
        elif len(shape) == 1:
            tensors[name] = rng.normal(1, 0.1, shape).astype(np.float32)
        else:
            tensors[name] = (rng.normal(size=shape) * shape[1] ** -0.5).astype(np.float32)
    return tensors


@pytest.fixture(scope="session")
def make_trace() -> Callable[..., Trace]:
    """A finished trace of ten thinking tokens with boundaries behind 4, 7 and 10, any field of it replaced."""

    def make(**changes: Any) -> Trace:
        fields: dict[str, Any] = {
            "id": "a",
            "prompt": "What is 3 + 4?",
            "prompt_ids": [1, 2, 3],
            "think_ids": list(range(20, 30)),
            "answer_ids": [5, 6],
            "answer": "7",
            "reference": "7",
            "correct": True,
            "finish_reason": "stop",
            "boundaries": [4, 7, 10],
            "boundary_answers": [None, "7", "7"],
            "boundary_agrees": [False, True, True],
            "boundary_confidence": [0.5, 0.75, 1.0],
            "target": "tiny-reasoner",
            "sampling": "{}",
            "seed": 0,
        }
        return Trace(**fields | changes)

    return make
