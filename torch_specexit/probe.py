"""The PyTorch side of ``specexit verify``: what a draft says about a few traces, a file for each of them.

``python -m torch_specexit.probe``, arguments as in `specexit.drafts.probing`. The JAX package has the same command, and
each runs in a process of its own, so that neither imports the other.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from specexit.drafts.directory import check_target, read_config
from specexit.drafts.probing import first_traces, parse, rows_of, sequence_of, thinking_of
from specexit.method.signals import activate
from specexit.schemas.target import load_target_config
from torch_specexit.draft import Draft
from torch_specexit.features import TargetFeatures


@torch.inference_mode()
def probe(arguments: argparse.Namespace) -> None:
    """Write ``I.npz`` for trace I, see `specexit.drafts.probing`."""
    config, target = read_config(arguments.draft), load_target_config(arguments.target)
    check_target(config, arguments.draft, target.hf_config(), target.name)
    think_end = target.think_tokens().end
    features = TargetFeatures(target, config.eagle_aux_hidden_state_layer_ids)
    draft = Draft.load(arguments.draft, features.embedding)
    for i, trace in enumerate(first_traces(arguments.traces, arguments.n)):
        ids = sequence_of(trace, think_end, arguments.tokens)
        rows = rows_of(len(ids), arguments.rows)
        output = draft(torch.tensor([ids]), features(torch.tensor([ids])), steps=arguments.steps, at=torch.tensor(rows))
        arrays = {f"logits_{k}": logits[0].numpy() for k, logits in enumerate(output.logits)}
        if output.raw_signals is not None:
            raw = output.raw_signals[0, thinking_of(trace, len(ids))].numpy()
            arrays |= {"raw": raw, "signals": activate(raw)}
        np.savez(arguments.out / f"{i}.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    probe(parse(__doc__))
