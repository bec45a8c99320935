"""The peer's side of ``specexit bench-training``: speculators' model under torch.compile, a step for each job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from specexit.bench.process import claim_stdout, jobs, measured, reply
from torch_specexit.speculators import load_in_speculators


def main() -> None:
    """Train until stdin ends."""
    replies, asked = claim_stdout(), jobs()
    setup = next(asked)
    torch.set_num_threads(setup["threads"])
    step = make_step(Path(setup["folder"]), setup["length"], setup["ttt_steps"], getattr(torch, setup["dtype"]))
    first = step()
    step()
    reply(replies, {"loss": first})
    for _ in asked:
        reply(replies, measured(step))


def make_step(folder: Path, length: int, ttt_steps: int, dtype: torch.dtype = torch.float32) -> Callable[[], float]:
    """A function that does one step and returns its loss.

    As in speculators' own trainer, features are in ``dtype``, and products under autocast where that is not float32.

    Args:
      folder: with ``row.npz``, the row to train on, and ``draft``, the directory to begin with.
      length: tokens that the draft reads.
      ttt_steps: draft steps.
      dtype: of the features.
    """
    from speculators.losses import resolve_loss_config

    loss_config = resolve_loss_config("kl_div", "eager")  # the fused one needs a GPU
    row = {name: torch.from_numpy(value) for name, value in np.load(folder / "row.npz").items()}
    row |= {name: row[name].to(dtype) for name in ("aux", "state")}
    model = load_in_speculators(folder / "draft", row["embedding"], folder, attention="sdpa")
    # What the target gives is frozen on the other side, too.
    for module in (model.embed_tokens, model.verifier_lm_head, model.verifier_norm):
        module.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    forward = torch.compile(model.forward)
    documents = torch.zeros(1, length, dtype=torch.long)
    counted = torch.ones(1, length, dtype=torch.bool)
    counted[:, -2:] = False  # the other side has no token behind them

    def step() -> float:
        """One step of the optimizer; returns the loss before it."""
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            _, loss, _ = forward(
                row["aux"][:, :-1],
                row["tokens"][:, 1:],
                documents,
                loss_mask=counted,
                verifier_last_hidden_states=row["state"][:, 1:],
                ttt_steps=ttt_steps,
                loss_config=loss_config,
            )
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


if __name__ == "__main__":
    main()
