"""``python -m jax_specexit.probe``: what JAX computes from a draft directory on a few traces, a file for each of them.

`specexit verify` runs this and its PyTorch twin in processes of their own and compares the files.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_specexit.export import params_from_draft
from jax_specexit.model.draft import Draft
from jax_specexit.model.target import Target
from jax_specexit.training.step import ttt_outputs
from jax_specexit.weights import load_target
from specexit.drafts.directory import read_draft, target_ids
from specexit.drafts.probing import RAN, judged_traces, kept_rows, parse, sequence_of, thinking_of
from specexit.method.signals import activate
from specexit.schemas.target import load_target_config

BUCKET = 128
"""Lengths are padded to a multiple of this, to bound the number of compilations."""


def load_draft(folder: Path) -> tuple[Draft, np.ndarray]:
    """A draft directory as a Flax module, and the target id of every draft token.

    Raises:
      DraftError: see `specexit.drafts.directory.read_draft`.
    """
    config, tensors = read_draft(folder)
    draft = Draft(config, rngs=nnx.Rngs(0))
    nnx.update(draft, jax.tree.map(jnp.asarray, params_from_draft(config, tensors)))
    return draft, target_ids(config, tensors)


def main() -> None:
    """Write ``I.npz`` for trace I, see `specexit.drafts.probing`."""
    arguments = parse(__doc__)
    target_config = load_target_config(arguments.target)
    think_end = target_config.think_tokens().end
    dtype = jnp.dtype(arguments.dtype)
    if dtype == jnp.float32:
        jax.config.update("jax_default_matmul_precision", "highest")  # an accelerator multiplies with fewer bits
    draft, _ = load_draft(arguments.draft)
    target = load_target(target_config.folder, dtype)

    @nnx.jit(static_argnames="steps")
    def run(draft: Draft, target: Target, tokens: jax.Array, *, steps: int) -> tuple[jax.Array | None, list[jax.Array]]:
        positions, ones = jnp.arange(tokens.shape[1])[None], jnp.ones_like(tokens)
        layers = draft.config.eagle_aux_hidden_state_layer_ids
        _, aux = target(tokens, positions, ones, aux_layers=layers, dtype=dtype)
        assert aux is not None
        batch = {"tokens": tokens, "positions": positions, "segment_ids": ones}
        outputs = ttt_outputs(draft, target.embedding[...], aux, batch, steps)
        return draft.signals(aux, outputs[0]) if draft.source else None, outputs

    for i, trace in enumerate(judged_traces(arguments)):
        ids = sequence_of(trace, think_end, arguments.tokens)
        tokens = np.zeros((1, -(-len(ids) // BUCKET) * BUCKET), np.int32)
        tokens[0, : len(ids)] = ids
        raw, outputs = run(draft, target, jnp.asarray(tokens), steps=arguments.steps)
        arrays = {}
        for k, output in enumerate(outputs):
            kept = kept_rows(arguments, draft.config.draft_vocab_size, len(ids))
            rows = np.array([row for row in kept if row < len(ids) - 1 - k])
            arrays[f"logits_{k}"] = np.asarray(output[0, rows] @ draft.lm_head.kernel[...], np.float32)
        if raw is not None:
            thinking = thinking_of(trace, len(ids))
            shift = 1 if draft.source == "draft" else 0
            told = np.asarray(raw[0, thinking.start - shift : thinking.stop - shift], np.float32)
            arrays |= {"raw": told, "signals": activate(told)}
        np.savez(arguments.out / f"{i}.npz", **arrays)
    ran = {"dtype": dtype.name, "device": jax.default_backend()}
    (arguments.out / RAN).write_text(json.dumps(ran))


if __name__ == "__main__":
    main()
