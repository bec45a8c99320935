"""The whole loss by its definition: PyTorch, float64, a loop over TTT step and position, one tensor a row.

Nothing is shared with the fast one but the numbers of the recipe that stand here.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import torch

from jax_specexit.training.step import Followed, Frozen

STEPS, DECAY, SHARE, TIME, HIDDEN, EPS, THETA = 3, 0.7, 0.3, 12, 16, 1e-6, 100.0
AUX_RMS = (0.5, 2.0)
SMOOTHING = 0.95
BEFORE = Followed(np.zeros(5), np.array([0.1, 0.1, 0.004, 0.5]), np.array([0.118, 0.4, 100.0, 0.9]))
"""What steps before have left: pulls that have faded in part, for either reason, and pulls that have not."""


class Naive:
    """The loss by its definition, in float64; leaves of the parameters want gradients."""

    def __init__(
        self, source: str, given: dict[str, np.ndarray], batch: dict[str, Any], frozen: Frozen, skip_unknown: bool
    ):
        self.source, self.skip_unknown = source, skip_unknown
        self.aux, self.teacher = (double(given[name]) for name in ("aux", "hidden"))
        self.embedding = double(frozen.target["embedding"])
        self.batch = {name: np.asarray(value) for name, value in batch.items()}
        self.vocab, self.weight = np.asarray(frozen.draft_vocab), np.asarray(frozen.signal_weight)

    def together(self, row: int, t: int, later: int) -> bool:
        """Whether two places lie in one segment of a row."""
        ids = self.batch["segment_ids"][row]
        return later < TIME and ids[t] > 0 and ids[t] == ids[later]

    def places(self, ahead: int) -> Iterator[tuple[int, int]]:
        """Places whose segment still has a token so far ahead."""
        return ((row, t) for row in range(2) for t in range(TIME) if self.together(row, t, t + ahead))

    def trunk(self, params: Any) -> dict[tuple[int, int, int], torch.Tensor]:
        """Normed outputs of the draft by (step, row, place), wherever the token that it reads exists."""
        normed, hidden, keys, values = {}, {}, {}, {}
        for k in range(STEPS):
            for row, t in self.places(1 + k):
                token = self.batch["tokens"][row, t + 1 + k]
                before = hidden[k - 1, row, t] if k else self.normalised(row, t) @ params["fc"]["kernel"]
                x = torch.cat([norm(self.embedding[token], params["embed_norm"]), norm(before, params["hidden_norm"])])
                place = self.batch["positions"][row, t] + k
                q = rope((x @ params["q"]["kernel"]).reshape(4, 4), place)
                keys[k, row, t] = rope((x @ params["k"]["kernel"]).reshape(2, 4), place)
                values[k, row, t] = (x @ params["v"]["kernel"]).reshape(2, 4)
                seen = [(0, row, s) for s in range(t + 1) if self.together(row, s, t)]
                seen += [(j, row, t) for j in range(1, k + 1)]
                mixed = [
                    softmax(torch.stack([q[head] @ keys[at][head // 2] for at in seen]) / 2)
                    @ torch.stack([values[at][head // 2] for at in seen])
                    for head in range(4)
                ]
                state = before + torch.cat(mixed) @ params["o"]["kernel"]
                y, mlp = norm(state, params["post_norm"]), params["mlp"]
                gate = y @ mlp["gate"]["kernel"]
                inner = gate / (1 + torch.exp(-gate)) * (y @ mlp["up"]["kernel"])
                hidden[k, row, t] = state + inner @ mlp["down"]["kernel"]
                normed[k, row, t] = norm(hidden[k, row, t], params["norm"])
        return normed

    def normalised(self, row: int, t: int) -> torch.Tensor:
        return self.aux[row, t] / double(np.repeat(AUX_RMS, HIDDEN))

    def token_losses(self, params: Any, normed: dict) -> tuple[list[torch.Tensor], list[float]]:
        """Mean cross-entropy and top-1 of each step."""
        losses, top1 = [], []
        for k in range(STEPS):
            # Draft row t reads token t + 1 + k and says what comes behind it; so does the target at that token.
            counted = [
                (row, t)
                for row, t in self.places(2 + k)
                if self.batch["loss_mask"][row, t + 2 + k] and self.is_known(row, t + 1 + k)
            ]
            each, hits = [], 0
            for row, t in counted:
                p = softmax(self.teacher[row, t + 1 + k] @ self.embedding[self.vocab.tolist()].T)
                q = softmax(normed[k, row, t] @ params["lm_head"]["kernel"])
                each.append(-torch.sum(p * torch.log(q)))
                hits += self.vocab[int(torch.argmax(q))] == self.batch["tokens"][row, t + 2 + k]
            losses.append(sum(each) / len(each))
            top1.append(hits / len(each))
        return losses, top1

    def is_known(self, row: int, s: int) -> bool:
        """Whether the draft has a word for what the target would say behind this place."""
        choice = int(torch.argmax(self.teacher[row, s] @ self.embedding.T))
        return not self.skip_unknown or choice in self.vocab

    def read(self, normed: dict) -> dict[tuple[int, int], torch.Tensor]:
        """(row, place of the token that is spoken of) -> the state that its signals are read from."""
        if self.source == "fc":
            return {(row, t): self.normalised(row, t).requires_grad_() for row, t in self.places(0)}
        return {(row, t + 1): normed[0, row, t] for row, t in self.places(1)}

    def signal_loss(self, kernel: torch.Tensor, read: dict, signal: int) -> torch.Tensor:
        total, counts = torch.zeros(()), 0.0
        for (row, t), state in read.items():
            z, y = torch.clip(state @ kernel[:, signal], -15, 15), float(self.batch["signal_labels"][row, t, signal])
            count = self.batch["signal_mask"][row, t, signal] * self.weight[self.batch["tokens"][row, t]]
            sigmoid = 1 / (1 + torch.exp(-z))
            loss = [
                (sigmoid - y) ** 2,
                (sigmoid - y) ** 2,
                (torch.log1p(torch.exp(z)) - np.log1p(y)) ** 2,
                -(y * torch.log(sigmoid) + (1 - y) * torch.log(1 - sigmoid)),
            ][signal]
            total, counts = total + count * loss, counts + count
        return total / counts

    def fades(self, losses: list[torch.Tensor]) -> np.ndarray:
        """What is left of the signals' pulls, given `BEFORE` as what was seen before."""
        rows = [(r, t) for r, t in itertools.product(range(2), range(TIME)) if t and self.together(r, t - 1, t)]
        found = []
        for s in range(4):
            y = np.array([self.batch["signal_labels"][at][s] for at in rows], np.float64)
            count = [self.batch["signal_mask"][at][s] * self.weight[self.batch["tokens"][at]] for at in rows]
            y = np.log1p(y) if s == 2 else y
            p = np.average(y, weights=count)
            constant = -(p * np.log(p) + (1 - p) * np.log(1 - p)) if s == 3 else np.average((y - p) ** 2, weights=count)
            constant = SMOOTHING * BEFORE.constants[s] + (1 - SMOOTHING) * constant
            share = (SMOOTHING * BEFORE.losses[s] + (1 - SMOOTHING) * losses[s].item()) / constant
            found.append(np.clip((1 - share) / 0.1, 0, 1) * np.clip(share / 0.01, 0, 1))
        return np.array(found)

    def report(self, params: Any) -> dict[str, Any]:
        """Loss, its parts, weights and all gradients."""
        normed, kernel = self.trunk(params), params["signal_head"]["kernel"]
        token_loss, top1 = self.token_losses(params, normed)
        tokens = sum((DECAY**k * one for k, one in enumerate(token_loss)), torch.zeros(()))
        read = self.read(normed)
        signal_loss = [self.signal_loss(kernel, read, s) for s in range(4)]

        states = [y for (step, _, _), y in normed.items() if step == 0]
        force = size(torch.autograd.grad(tokens, states, retain_graph=True, allow_unused=True))
        pulls = [size(torch.autograd.grad(one, list(read.values()), retain_graph=True)) for one in signal_loss]
        reference = (
            SHARE * force * self.fades(signal_loss) if self.source == "draft" else np.exp(np.mean(np.log(pulls)))
        )
        weights = np.clip(reference / np.array(pulls), 1e-3, 1e3)

        loss = tokens + sum(w * one for w, one in zip(weights, signal_loss, strict=True))
        leaves, tree = jax.tree.flatten(params)
        return {
            "loss": loss.item(),
            "token_loss": [one.item() for one in token_loss],
            "top1": top1,
            "signal_loss": [one.item() for one in signal_loss],
            "weights": weights,
            "gradients": jax.tree.unflatten(tree, torch.autograd.grad(loss, leaves)),
        }


def double(x: Any) -> torch.Tensor:
    return torch.tensor(np.array(x, np.float64))


def norm(x: torch.Tensor, params: dict) -> torch.Tensor:
    return x * params["scale"] / torch.sqrt(torch.mean(x**2) + EPS)


def softmax(x: torch.Tensor) -> torch.Tensor:
    e = torch.exp(x - torch.max(x))
    return e / torch.sum(e)


def rope(x: torch.Tensor, place: int) -> torch.Tensor:
    angle = double(place * THETA ** -(np.arange(2) / 2))
    a, b = x[:, :2], x[:, 2:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=1)


def size(gradients: Any) -> float:
    return float(torch.sqrt(sum((torch.sum(g**2) for g in gradients if g is not None), torch.zeros(()))))
