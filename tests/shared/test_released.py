"""The released SpecExit's exit rule, restated from its description.

One round is a decoding step. Its score is the mean of the signals over the tokens it accepted; scores are averaged
exponentially over rounds. A round that accepts a split token is judged by the average that the rounds before it left:
thinking ends behind its first split token if confidence, progress and remaining tokens all pass their literals, where a
score that is not there, or is zero, does not. Nothing is judged once the target has closed its thinking.
tests/parity has its forward.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specexit.method.decision import PAPER, exit_position
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
        confidence, progress, remaining = averages[number - 1][:3] if number else (None, None, None)
        above = confidence and confidence > 0.8 and progress and progress > 0.3
        if places and above and remaining and remaining < 200:
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


TIE = (0.8, 0.3, 200.0)
BEYOND = (np.nextafter(0.8, 1), np.nextafter(0.3, 1), np.nextafter(200.0, 0))


@pytest.mark.parametrize(
    ("scores", "theirs", "ours"),
    [
        (BEYOND, 1, 1),
        (TIE, None, 1),  # they want more than the literal, we want as much
        *(((*BEYOND[:i], TIE[i], *BEYOND[i + 1 :]), None, 1) for i in range(3)),
        ((*BEYOND[:2], 0.0), None, 1),  # which they take for no score at all, and we for nothing left to think
    ],
)
def test_at_the_very_literals_the_rules_differ_as_the_documentation_says(scores, theirs, ours):
    """A round of one token leaves its own signals as the average; the next one holds a split token."""
    signals, ids = np.array([[*scores, 0.0]] * 2), ThinkTokens(start=0, end=END, split=frozenset(SPLITS))
    assert released_exit([2, 5], signals, [1, 1]) == theirs
    assert exit_position([2, 5], signals, PAPER, ids, [1, 1]) == ours
