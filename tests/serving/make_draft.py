"""Make draft directories for the tiny target in some twenty seconds: really trained to draft, with random signals.

Random signals fire at arbitrary boundaries, which is what tests of the serving path need; that trained ones fire at the
right boundaries is shown elsewhere.

Run as a program: ``make_draft.py FOLDER`` writes ``FOLDER/draft`` and ``FOLDER/fc``.
"""

from __future__ import annotations

import random
import sys
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from specexit.drafts.directory import DraftConfig, SpecExitBlock, write_draft
from specexit.method.decision import Policy
from specexit.method.signals import NAMES, activate, column
from specexit.method.splits import ThinkTokens
from specexit.schemas.target import TargetConfig, load_target_config
from specexit.tiny import prompt_text, render_response, stream, write_trace
from torch_specexit.draft import Draft
from torch_specexit.features import TargetFeatures

STEPS, BATCH, LENGTH, DRAFT_STEPS = 150, 4, 160, 2
FIRES = 0.8
"""Share of the texts with a boundary, before their last, at which a random head's validity reaches the threshold."""
EARLY = 0.25
"""Of source ``draft``, validity that is to be reached some tokens before a boundary already."""
SEEDS = 8
"""Random heads to choose from: the one that exits in the most different places."""


def texts(target: TargetConfig, n: int) -> list[list[int]]:
    """Prompt and response of generated problems, as tokens."""
    rng, tokenizer = random.Random(0), target.tokenizer()
    return [
        tokenizer.encode(prompt_text(problem.question) + render_response(problem, write_trace(rng, problem)))
        for problem in islice(stream("draft", 0), n)
    ]


def config(target: TargetConfig, vocabulary: int, block: SpecExitBlock | None) -> DraftConfig:
    hf = target.hf_config()
    return DraftConfig(
        hidden_size=hf["hidden_size"],
        target_hidden_size=hf["hidden_size"],
        intermediate_size=hf["intermediate_size"],
        num_attention_heads=hf["num_attention_heads"],
        num_key_value_heads=hf["num_key_value_heads"],
        head_dim=hf["head_dim"],
        vocab_size=hf["vocab_size"],
        draft_vocab_size=vocabulary,
        eagle_aux_hidden_state_layer_ids=target.aux_layers,
        num_aux_hidden_states=len(target.aux_layers),
        target_num_hidden_layers=hf["num_hidden_layers"],
        specexit=block,
    )


def train(draft: Draft, features: TargetFeatures, tokens: list[list[int]], to_draft: Tensor) -> None:
    """Teach a draft to predict the text, by cross-entropy on the tokens themselves."""
    joined = torch.tensor([token for text in tokens for token in text])
    blocks = joined[: len(joined) // LENGTH * LENGTH].view(-1, LENGTH)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=4e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS, pct_start=0.1)
    for step in range(STEPS):
        batch = blocks[torch.arange(step * BATCH, (step + 1) * BATCH) % len(blocks)]
        loss = torch.zeros(())
        for k, logits in enumerate(draft(batch, features(batch).clone(), steps=DRAFT_STEPS).logits):
            labels = to_draft[batch[:, 2 + k :]]
            loss = loss + F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(draft.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    print(f"loss of the draft steps together {loss.item():.3f}")


@torch.no_grad()
def random_signals(draft: Draft, features: TargetFeatures, tokens: list[list[int]], ids: ThinkTokens) -> Policy:
    """Give a draft random signal rows, and return the policy that fires in `FIRES` of the texts."""
    rows = draft.signal_head.weight if draft.signal_head is not None else draft.fc.weight[-len(NAMES) :]
    early = {"validity": EARLY}
    policy = Policy(early=early) if draft.signal_head is not None else Policy(smoothing="ewma", alpha=0.5)
    read = [features(torch.tensor([text])) for text in tokens]  # of the target, which no seed changes
    best: tuple[int, float, Tensor] | None = None
    for seed in count():
        if seed >= SEEDS and best is not None:
            break
        noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
        rows.copy_(2 * noise / rows.shape[1] ** 0.5)
        validity = [
            boundary_validity(draft, lambda _, states=states: states, text, ids, policy)
            for text, states in zip(tokens, read, strict=True)
        ]
        # Some requests ask for a threshold of one half, which has to mean something.
        if not 0.25 < np.mean(np.concatenate(validity) > 0.5) < 0.6:
            continue
        threshold = float(np.quantile([max(values[:-1]) for values in validity], 1 - FIRES))
        places = {next((i for i, value in enumerate(values) if value >= threshold), None) for values in validity}
        if best is None or len(places) > best[0]:
            best = (len(places), threshold, rows.clone())
    assert best is not None
    rows.copy_(best[2])
    return policy.model_copy(update={"thresholds": {"validity": best[1]}})


def boundary_validity(draft, features, text: list[int], ids: ThinkTokens, policy: Policy) -> list[float]:
    """The validity that a policy judges at each boundary of a text."""
    judged = zip(*smoothed_signals(draft, features, text, ids, policy), strict=True)
    return [float(values[column("validity")]) for token, values in judged if token in ids.split]


def signal_values(draft: Draft, features: TargetFeatures, text: list[int]) -> np.ndarray:
    """Signal values of every token of a text, by the PyTorch draft and transformers' target."""
    tokens = torch.tensor([text])
    raw = draft(tokens, features(tokens).clone()).raw_signals
    assert raw is not None
    return activate(raw[0].detach().numpy())


def smoothed_signals(draft, features, text: list[int], ids: ThinkTokens, policy: Policy):
    """Thinking tokens of a text and what the policy judges at each of them."""
    start, end = text.index(ids.start) + 2, text.index(ids.end)  # behind "<think>\n"
    values, smoothed = signal_values(draft, features, text)[start:end], []
    for value in values:
        keep = policy.smoothing == "ewma" and smoothed
        smoothed.append(policy.alpha * value + (1 - policy.alpha) * smoothed[-1] if keep else value)
    return text[start:end], smoothed


def main(folder: Path) -> None:
    torch.manual_seed(0)
    target = load_target_config("tiny-reasoner")
    tokens = texts(target, 700)
    # A reduced draft vocabulary, as real drafts have: all but the rarest tokens.
    counts = np.bincount(np.concatenate(tokens), minlength=target.hf_config()["vocab_size"])
    kept = np.sort(np.argsort(-counts, kind="stable")[:512])
    to_draft = torch.full((len(counts),), -1)
    to_draft[torch.from_numpy(kept)] = torch.arange(len(kept))
    features = TargetFeatures(target, target.aux_layers)

    block = SpecExitBlock(source="draft", target=target.name, split_endings=target.split_endings)
    draft = Draft(config(target, len(kept), block), features.embedding)
    draft.d2t.copy_(torch.from_numpy(kept) - torch.arange(len(kept)))
    with torch.no_grad():
        draft.lm_head.weight.copy_(features.embedding[kept])  # the target's head is its embedding: a good beginning
    train(draft, features, tokens, to_draft)
    for source in ("draft", "fc"):
        shape = config(target, len(kept), block.model_copy(update={"source": source}))
        variant = Draft(shape, features.embedding)
        trunk = {
            name: value for name, value in draft.state_dict().items() if not name.startswith(("signal_head", "fc"))
        }
        variant.load_state_dict(trunk, strict=False)
        with torch.no_grad():
            variant.fc.weight[: shape.hidden_size].copy_(draft.fc.weight)
        policy = random_signals(variant, features, tokens[:60], target.think_tokens())
        assert shape.specexit is not None
        final = shape.model_copy(update={"specexit": shape.specexit.model_copy(update={"policy": policy})})
        t2d = np.isin(np.arange(len(counts)), kept)
        tensors = {name: value.numpy() for name, value in variant.state_dict().items()} | {"t2d": t2d}
        write_draft(folder / source, final, tensors)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
