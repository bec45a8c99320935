"""Labels: what each signal should say at each token, and that it follows from the exit point alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from specexit.method.labels import answer_confidence, exit_point, step_of, token_labels
from specexit.method.signals import column


@st.composite
def verdicts(draw: st.DrawFn) -> tuple[list[int], list[bool], list[float], int]:
    """Boundaries, verdicts and confidences of a trace, and its length."""
    n = draw(st.integers(1, 60))
    boundaries = sorted(draw(st.sets(st.integers(1, n), min_size=1, max_size=8)))
    size = len(boundaries)
    agrees = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    confidence = draw(st.lists(st.floats(0, 1, width=32), min_size=size, max_size=size))
    return boundaries, agrees, confidence, n


@given(verdicts())
def test_exit_points(trace):
    boundaries, agrees, _, n = trace
    earliest, stable = (exit_point(boundaries, agrees, n, kind) for kind in ("earliest", "stable"))
    assert earliest <= stable
    verdict = dict(zip(boundaries, agrees, strict=True))
    assert earliest == min((b for b in boundaries if verdict[b]), default=n)
    settled = [b for b in boundaries if all(verdict[later] for later in boundaries if later >= b)]
    assert stable == min(settled, default=n)


@given(verdicts(), st.data())
def test_a_trial_that_was_cut_off_is_as_if_there_were_no_boundary(trace, data):
    boundaries, agrees, _, n = trace
    decided = data.draw(st.lists(st.booleans(), min_size=len(agrees), max_size=len(agrees)))
    said = [agree and ended for agree, ended in zip(agrees, decided, strict=True)]
    rest = [(b, agree) for b, agree, ended in zip(boundaries, agrees, decided, strict=True) if ended]
    for kind in ("earliest", "stable"):
        without = exit_point([b for b, _ in rest], [agree for _, agree in rest], n, kind)
        assert exit_point(boundaries, said, n, kind, decided) == without


@given(verdicts())
def test_labels_follow_from_the_exit_point(trace):
    boundaries, agrees, confidence, n = trace
    exit_at = exit_point(boundaries, agrees, n)
    labels, _ = token_labels(boundaries, agrees, confidence, n, exit_at)
    remaining, progress = labels[:, column("remaining")], labels[:, column("progress")]
    assert remaining[0] == exit_at - 1
    assert np.all(np.diff(remaining) <= 0)
    assert np.all(np.diff(progress) >= 0)
    # The token that ends at the exit point has nothing left to think, and neither has any behind it.
    assert np.all(remaining[exit_at - 1 :] == 0)
    assert np.all(progress[exit_at - 1 :] == 1)
    assert np.all(remaining[: exit_at - 1] > 0)
    assert np.all(progress[: exit_at - 1] < 1)


@given(verdicts())
def test_a_step_has_the_verdict_at_its_own_end(trace):
    boundaries, agrees, confidence, n = trace
    labels, mask = token_labels(boundaries, agrees, confidence, n, exit_point(boundaries, agrees, n))
    for token in range(n):
        ends = [i for i, boundary in enumerate(boundaries) if boundary > token]
        assert mask[token, column("validity")] == mask[token, column("confidence")] == bool(ends)
        if ends:
            assert labels[token, column("validity")] == agrees[ends[0]]
            assert labels[token, column("confidence")] == np.float32(confidence[ends[0]])
    assert mask[:, [column("remaining"), column("progress")]].all()


def test_a_split_token_belongs_to_the_step_it_ends():
    assert step_of([2, 5], 6).tolist() == [0, 0, 1, 1, 1, 2]


def test_confidence_of_no_tokens_is_zero():
    assert answer_confidence([]) == 0.0
