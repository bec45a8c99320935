"""What a reader in a hurry has to know: is accuracy lost, what is gained, what is guaranteed."""

from __future__ import annotations

from collections.abc import Sequence

from specexit.bench.results import BASELINE, LOSS_MARGIN, Results, computed_again
from specexit.drafts.certified import confidence, in_percent, provisos
from specexit.drafts.policy import PolicyFile
from specexit.errors import printable
from specexit.schemas.sampling import drawn

ALPHA = 0.05
"""Level of the tests that the verdict stands on."""

MOST_NAMED = 12
"""Methods that a sentence names."""

SPACE = "\N{NARROW NO-BREAK SPACE}"
"""In front of a percent sign."""


def percent(share: float, digits: int = 1) -> str:
    """A share as a person reads it."""
    return f"{100 * share:.{digits}f}{SPACE}%".replace("-", "\N{MINUS SIGN}")


def verdict(results: Results, file: PolicyFile | None, doubts: Sequence[str] = ()) -> tuple[str, ...]:
    """The sentences; of a benchmark without exits only what is wrong with its times.

    Args:
      results: of the benchmark.
      file: policies of the draft that was measured; None where it is not known, or has none.
      doubts: why their certificates do not hold, see `specexit.drafts.certified.doubts_of`.
    """
    again = computed_again(results)
    said = [] if again is None else [again]
    if "specexit" not in results.methods:
        return tuple(said)
    versus, exits = results.against_eagle3["specexit"], results.methods["specexit"].exits
    if not exits.exit:
        said.append(
            "None of its responses exits, so that what is measured is EAGLE-3, with signals that nothing follows from."
        )
    if versus.p_loss is not None:
        proven = versus.p_loss <= ALPHA
        lost = -versus.accuracy_delta[0]
        more = f"{100 * lost:.1f} points were lost" if lost > LOSS_MARGIN else "more problems would tell"
        said.append(
            f"{'Ruled out' if proven else 'Not ruled out'}: a loss of accuracy of a point or more "
            f"(p {_p(versus.p_loss)} on {results.n} problems{'' if proven else f'; {more}'})."
        )
    speed = "; ".join(_speed(results, batch, triple[0]) for batch, triple in versus.speedup.items())
    said.append(f"Against EAGLE-3 with the same draft, end to end: {speed}.")
    for batch, others in results.specexit_faster.items():
        slower = [name for name, p in others.items() if p <= ALPHA]
        rest = [name for name in others if name not in slower]
        if set(others) != {BASELINE}:
            text = f"At batch {batch} it answers sooner than {_named(slower) or 'none of the others'}"
            every = "every other method measured" + (" but the oracle" if "oracle" in results.methods else "")
            said.append(text + (f"; not shown of {_named(rest)}." if rest else f": {every}."))
    if file is not None:
        said.append(certificate(file, doubts, results))
    return tuple(said)


def _named(methods: Sequence[str]) -> str:
    """Methods in a sentence, in which "none" would be no method."""
    names = ["no speculation" if name == "none" else name for name in methods]
    more = len(names) - MOST_NAMED
    return ", ".join(names if more <= 0 else [*names[:MOST_NAMED], f"{more} more (P-values below)"])


def _speed(results: Results, batch: str, times: float) -> str:
    """A speed-up, and what the test says of it: Holm-corrected over all that specexit is compared with."""
    p = results.specexit_faster.get(batch, {}).get(BASELINE)
    if p is None:
        shown = "not tested"
    else:
        shown = f"{'it answers sooner' if p <= ALPHA else 'that it answers sooner is not shown'}, p {_p(p)}"
    return f"{times:.2f}× as fast at batch {batch} ({shown})"


def certificate(file: PolicyFile, doubts: Sequence[str], results: Results) -> str:
    """The guarantee of the policy that serves, in a sentence.

    Args:
      file: policies of the draft, with their certificates.
      doubts: why those do not hold.
      results: of the benchmark, which may know that none of its problems was calibrated on, and has a sampling.
    """
    point = file.point()
    found, own = point.certificate, point.uncertified_because()
    if found is None:
        return "Its policy is not certified, so nothing is guaranteed of it."
    if wrong := [*([] if own is None else [own]), *doubts]:
        return (
            f"The certificate of its policy does not hold here ({printable('; '.join(wrong))}), so nothing is "
            "guaranteed of it."
        )
    others = found.data_sha256 == results.inputs.get("calibration_traces")
    what = "the answer changes" if found.risk == "answer_changed" else "a right answer is lost"
    text = (
        f"Its policy is calibrated on {found.n} {'other ' if others else ''}problems "
        f"({found.errors:g} of them wrong): with probability at least {confidence(found.delta)}{SPACE}%, {what} in "
        f"at most {in_percent(found.epsilon)}{SPACE}% of problems like these, decoded like these"
        f"{provisos(found, file.sampling)}"
    )
    ours, theirs = drawn(results.sampling), drawn(file.sampling or {})
    if None not in (ours, theirs) and ours != theirs:
        text += "; what was measured here was decoded otherwise, so that this is not said of it"
    text += "" if others else "; whether the measured problems are among those was not checked"
    return f"{text}."


def shown_p(value: float) -> str:
    """A P-value as a person reads it: three digits, which never hide on which side of 0.05 it is.

    >>> shown_p(0.0004), shown_p(0.0496), shown_p(0.05), shown_p(0.0504), shown_p(0.0512)
    ('< 0.001', '< 0.05', '0.050', '> 0.05', '0.051')
    """
    digits = f"{value:.3f}"
    if value < 0.001:
        return "< 0.001"
    if digits == "0.050" and value != 0.05:
        return "< 0.05" if value < 0.05 else "> 0.05"
    return digits


def _p(value: float) -> str:
    shown = shown_p(value)
    return shown if shown[0] in "<>" else f"= {shown}"
