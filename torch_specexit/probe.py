"""The PyTorch side of ``specexit verify``: what a draft says about a few traces, a file for each of them.

``python -m torch_specexit.probe``, arguments as in `specexit.drafts.probing`. The JAX package has the same command, and
each runs in a process of its own, so that neither imports the other. This side also looks for mistakes that both would
share; `MISTAKES` says what it found.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch

from specexit.drafts.directory import check_target, read_draft
from specexit.drafts.probing import MISTAKES, RAN, judged_traces, kept_rows, parse, sequence_of, thinking_of
from specexit.method.signals import activate
from specexit.schemas.target import load_target_config
from torch_specexit.draft import Draft, as_torch
from torch_specexit.features import TargetFeatures, place
from torch_specexit.mistakes import Mistakes, layers_of


@torch.inference_mode()
def probe(arguments: argparse.Namespace) -> None:
    """Write ``I.npz`` for trace I, see `specexit.drafts.probing`, and what `Mistakes` found."""
    (config, tensors), target = read_draft(arguments.draft), load_target_config(arguments.target)
    check_target(config, arguments.draft, target.hf_config(), target.name)
    think_end, layers = target.think_tokens().end, layers_of(config)
    device, dtype = place(arguments.device, arguments.dtype, target)
    features = TargetFeatures(target, layers, dtype=getattr(torch, dtype), device=device)
    draft = Draft.load(arguments.draft, features.embedding).to(device)
    weights = {name: as_torch(tensor).to(device) for name, tensor in tensors.items() if name != "t2d"}
    mistakes = Mistakes(
        config, weights, target.hf_config(), features.embedding, steps=arguments.steps, most=arguments.rows
    )
    for i, trace in enumerate(judged_traces(arguments)):
        ids = sequence_of(trace, think_end, arguments.tokens)
        tokens, rows = torch.tensor([ids], device=device), kept_rows(arguments, config.draft_vocab_size, len(ids))
        states = dict(zip(layers, features(tokens)[0].chunk(len(layers), dim=-1), strict=True))
        aux = torch.cat([states[layer] for layer in config.eagle_aux_hidden_state_layer_ids], dim=-1)[None]
        output = draft(tokens, aux, steps=arguments.steps, at=torch.tensor(rows, device=device))
        arrays = {f"logits_{k}": logits[0].float().cpu().numpy() for k, logits in enumerate(output.logits)}
        if output.raw_signals is not None:
            raw = output.raw_signals[0, thinking_of(trace, len(ids))].float().cpu().numpy()
            arrays |= {"raw": raw, "signals": activate(raw)}
        np.savez(arguments.out / f"{i}.npz", allow_pickle=False, **arrays)
        mistakes.read(np.array(ids), max(len(trace.prompt_ids) - 1, 0), states)
    (arguments.out / RAN).write_text(json.dumps({"dtype": dtype, "device": device}))
    (arguments.out / MISTAKES).write_text(json.dumps(mistakes.result()))


if __name__ == "__main__":
    probe(parse(__doc__))
