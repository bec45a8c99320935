"""Everything that was checked, in words and counts, and which checks the page was not given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from specexit.bench.replay import ReplayCheck
from specexit.bench.results import NO_INTERVAL, Results, is_interval
from specexit.report.figures import Table
from specexit.report.verdict import percent, shown_p


def tests(results: Results) -> Table | None:
    """P-values of each method; None where there is none."""
    faster = results.specexit_faster
    columns = ("method", "it loses a point or more", *(f"specexit answers sooner, batch {batch}" for batch in faster))
    rows = [
        (
            name,
            _p(results.against_eagle3[name].p_loss if name in results.against_eagle3 else None),
            *(_p(others.get(name)) for others in faster.values()),
        )
        for name in results.methods
    ]
    told = [row for row in rows if any(cell != "–" for cell in row[1:])]
    return Table(columns, tuple(told)) if told else None


def _p(value: float | None) -> str:
    return "–" if value is None else shown_p(value)


def checks(results: Results, replay: ReplayCheck | None, full_size: Results | None) -> Iterator[tuple[str, str]]:
    """What was compared, and what came of it.

    Args:
      results: of the benchmark.
      replay: of `bench-replay`, where it is at hand.
      full_size: of `bench-full-size`, where it is at hand.
    """
    for name, check in results.lossless.items():
        yield name.replace("_", " "), f"{check.n - check.mismatches} of {check.n} outputs identical, token for token"
    if not results.lossless:
        yield "outputs compared token for token", "none: sampled, so that no two runs need write the same"
    yield "served exits against replayed ones", _replayed(replay)
    stand_in = results if results.shape else full_size
    if stand_in is None or stand_in.shape is None:
        yield "at a real target's size", "not given (specexit bench-full-size, then full_size=FILE)"
        return
    shape = stand_in.shape
    for what, (same, n) in shape.get("same", {}).items():
        yield f"{shape['name']}, {what}", f"{same} of {n} are the small target's"
    for batch, speedup in stand_in.against_eagle3["specexit"].speedup.items():
        value, low, high = (f"{x:.2f}" for x in speedup)
        between = f"{low} to {high}" if is_interval(speedup) else NO_INTERVAL
        yield f"{shape['name']}, batch {batch}", f"{value}× as fast as EAGLE-3 ({between})"
    yield f"what {shape['name']} is", f"{shape['is']}; not {shape['is_not']}"


def _replayed(check: ReplayCheck | None) -> str:
    if check is None:
        return "not given (specexit bench-replay, then replay=FILE)"
    text = (
        f"{check.same} of {check.n} requests of {check.method} exit where the replay does ({percent(check.share, 2)})"
    )
    reasons = Counter(difference.why for difference in check.differences)
    return f"{text}; the others: {', '.join(f'{n} {why}' for why, n in reasons.items())}" if reasons else text
