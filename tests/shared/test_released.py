"""The released SpecExit, restated from its description: its exit rule, and its three rows of ``fc``.

One round is a decoding step. Its score is the mean of the signals over the tokens it accepted; scores are averaged
exponentially over rounds. A round that accepts a split token is judged by the average that the rounds before it left:
thinking ends behind its first split token if confidence, progress and remaining tokens all pass their literals. Nothing
is judged once the target has closed its thinking.
"""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from specexit.drafts.directory import read_draft
from specexit.method.decision import PAPER, exit_position
from specexit.method.signals import activate
from specexit.method.splits import ThinkTokens

END, SPLITS = 1, {5, 6}


def released_exit(tokens, signals, sizes):
    """Place of the last token kept, or None where thinking ends by itself."""
    ends = np.cumsum(sizes)
    rounds = [
        (end - size, min(end, len(tokens))) for size, end in zip(sizes, ends, strict=True) if end - size < len(tokens)
    ]
    averages = []
    for begin, end in rounds:
        score = signals[begin:end].mean(axis=0)
        averages.append(score if not averages else 0.1 * score + 0.9 * averages[-1])
    for number, (begin, end) in enumerate(rounds):
        accepted = list(tokens[begin:end])
        if END in accepted:
            return None
        places = [begin + i for i, token in enumerate(accepted) if token in SPLITS]
        if places and number:
            confidence, progress, remaining = averages[number - 1][:3]
            if confidence >= 0.8 and progress >= 0.3 and remaining <= 200:
                return places[0]
    return None


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 60))
def test_smoothing_round_is_the_released_rule(seed, length):
    rng = np.random.default_rng(seed)
    tokens = rng.choice([2, 3, 4, 5, 6, END], length, p=[0.25, 0.25, 0.2, 0.15, 0.14, 0.01])
    level = rng.uniform(0.5, 1.0)  # so that averages come to lie on both sides of the literals
    signals = np.stack(
        [
            rng.uniform(level - 0.3, 1, length),
            rng.uniform(0, 1, length),
            rng.uniform(0, 350, length),
            rng.random(length),
        ],
        axis=1,
    )
    sizes = rng.integers(1, 6, length).tolist()
    ids = ThinkTokens(start=0, end=END, split=frozenset(SPLITS))
    assert exit_position(tokens.tolist(), signals, PAPER, ids, sizes) == released_exit(tokens, signals, sizes)


def test_the_sequences_exit_in_some_and_not_in_others():
    """The property above would say nothing of sequences that never exit."""
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        tokens = rng.choice([2, 3, 4, 5, 6], 40)
        level = rng.uniform(0.5, 1.0)
        signals = np.stack([rng.uniform(level - 0.3, 1, 40), rng.random(40), rng.uniform(0, 350, 40)], axis=1)
        found.append(released_exit(tokens, signals, [3] * 14))
    exits = sum(place is not None for place in found)
    assert 20 < exits < 180


def test_the_first_three_rows_behind_fc_are_the_released_signals(tmp_path, write_random_draft):
    _, tensors = read_draft(write_random_draft(tmp_path / "draft", "fc"))
    aux = np.random.default_rng(0).normal(size=(7, 192)).astype(np.float32)
    projected = aux @ tensors["fc.weight"].T
    hidden, rows = projected[:, :64], projected[:, 64:]
    confidence, progress, remain = 1 / (1 + np.exp(-rows[:, 0])), 1 / (1 + np.exp(-rows[:, 1])), np.exp(rows[:, 2])
    ours = activate(rows)
    np.testing.assert_allclose(ours[:, :3], np.stack([confidence, progress, remain], axis=1), rtol=1e-5)
    assert hidden.shape == (7, 64)  # what the draft layer is fed is what stands before the rows
