"""The PyTorch side of ``specexit verify``: first-pass logits and signals of a few traces, into an ``.npz`` file.

``python -m torch_specexit.probe --draft DIR --traces PATH --target NAME --n N --out FILE.npz``. The JAX package has
the same command, and each runs in a process of its own, so that neither imports the other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from specexit.data.traces import read_traces
from specexit.drafts.directory import check_target, read_config
from specexit.method.signals import activate
from specexit.schemas.target import load_target_config
from torch_specexit.draft import Draft
from torch_specexit.features import TargetFeatures


@torch.inference_mode()
def probe(draft_folder: Path, traces_path: Path, target_name: str, n: int) -> dict[str, np.ndarray]:
    """Arrays of the first ``n`` traces.

    Returns:
      For trace ``i``: ``logits_i`` [tokens - 1, draft vocab] over the whole trace, answer included, and, unless the
      draft is plain, ``raw_i`` and ``signals_i`` [thinking tokens, signals] before and after the activation.
    """
    config, target = read_config(draft_folder), load_target_config(target_name)
    check_target(config, draft_folder, target.hf_config(), target.name)
    think_end = target.think_tokens().end
    features = TargetFeatures(target, config.eagle_aux_hidden_state_layer_ids)
    draft = Draft.load(draft_folder, features.embedding)
    arrays: dict[str, np.ndarray] = {}
    for i, trace in enumerate(read_traces(traces_path, n)):
        tokens = torch.tensor([[*trace.prompt_ids, *trace.think_ids, think_end, *trace.answer_ids]])
        output = draft(tokens, features(tokens))
        arrays[f"logits_{i}"] = output.logits[0][0].numpy()
        if output.raw_signals is not None:
            start = len(trace.prompt_ids)
            raw = output.raw_signals[0, start : start + len(trace.think_ids)].numpy()
            arrays |= {f"raw_{i}": raw, f"signals_{i}": activate(raw)}
    return arrays


def main() -> None:
    """Command line, see the module."""
    parser = argparse.ArgumentParser(prog="python -m torch_specexit.probe", description=__doc__)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    np.savez(args.out, allow_pickle=False, **probe(args.draft, args.traces, args.target, args.n))


if __name__ == "__main__":
    main()
