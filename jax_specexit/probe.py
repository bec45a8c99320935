"""``python -m jax_specexit.probe``: a draft directory's signals and logits on traces, as JAX computes them.

`specexit verify` runs this and its PyTorch twin in processes of their own and compares the two files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_specexit.evaluation.scoring import score
from jax_specexit.export import params_from_draft
from jax_specexit.model.draft import Draft
from jax_specexit.weights import load_target
from specexit.data.traces import read_traces
from specexit.drafts.directory import read_draft
from specexit.schemas.target import load_target_config


def load_draft(folder: Path) -> tuple[Draft, np.ndarray]:
    """A draft directory as a Flax module, and the target id of every draft token.

    Raises:
      DraftError: see `specexit.drafts.directory.read_draft`; also for a plain EAGLE-3 draft, which has no signals.
    """
    config, tensors = read_draft(folder)
    draft = Draft(config, rngs=nnx.Rngs(0))
    nnx.update(draft, jax.tree.map(jnp.asarray, params_from_draft(config, tensors)))
    return draft, tensors["d2t"] + np.arange(config.draft_vocab_size)


def main() -> None:
    """Write ``raw_i``, ``signals_i`` and ``logits_i`` for the first ``n`` traces."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (("draft", Path), ("traces", Path), ("target", str), ("n", int), ("out", Path)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    arguments = parser.parse_args()
    target_config = load_target_config(arguments.target)
    draft, vocab = load_draft(arguments.draft)
    traces = read_traces(arguments.traces, arguments.n)
    place = {trace.id: i for i, trace in enumerate(traces)}
    arrays = {}
    for scored in score(
        draft,
        load_target(target_config.folder),
        vocab,
        traces,
        think_end=target_config.think_tokens().end,
        ttt_steps=1,
    ):
        i = place[scored.trace.id]
        # The last row has no next token to read: what it says depends on the padding.
        arrays |= {f"raw_{i}": scored.raw, f"signals_{i}": scored.signals, f"logits_{i}": scored.logits[:-1]}
    np.savez(arguments.out, **arrays)


if __name__ == "__main__":
    main()
