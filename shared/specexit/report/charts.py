"""Charts as SVG text that takes its colours from the page, so that one drawing serves light and dark mode.

Each function returns an ``<svg>`` element to be put into HTML. Colours are CSS variables (`PALETTE`): matplotlib draws
with stand-in colours, which are then replaced.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from specexit.data.summary import CurvePoint
from specexit.method.decision import Policy
from specexit.method.signals import NAMES, SIGNALS, column

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = {
    "ink": "#010203",
    "faint": "#020304",
    "c1": "#030405",
    "c2": "#040506",
    "c3": "#050607",
    "c4": "#060708",
    "c5": "#070809",
    "kept": "#08090a",
}
"""CSS variable -> the stand-in that matplotlib draws with."""

METHOD_STYLE = {
    "none": ("s", "faint"),
    "eagle3": ("o", "c1"),
    "specexit": ("D", "c2"),
    "specexit-fc": ("^", "c3"),
    "budget": ("X", "c4"),
    "paper": ("p", "c5"),
    "exits-alone": ("d", "c2"),
    "budget-hard": ("P", "c4"),
    "no-thinking": ("<", "c5"),
    "kth-boundary": ("h", "c5"),
    "stability": ("v", "c1"),
    "deer": (">", "c3"),
    "certaindex": ("8", "c4"),
    "oracle": ("*", "faint"),
}
OTHER_SHAPES = "<>vPHph8d"
DASHES = ((0, (10, 3)), "--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)))
"""Of replayed methods that share a colour. None is solid: their colour is next to that of validity, which is."""
SIGNAL_STYLE = {
    "confidence": ("c3", ":", "^"),
    "progress": ("c1", "-.", "s"),
    "remaining": ("c4", (0, (6, 2, 1, 2, 1, 2)), "D"),
    "validity": ("c2", "-", "o"),
}
"""Colour, line and mark of each signal, on every chart. None is plainly dashed, as their thresholds are."""
LONGEST_LABEL, MOST_ROWS = 24, 5
"""Most characters of a name in a legend; rows of a legend that the height of a figure has room for."""


def style_of(name: str) -> tuple[str, str]:
    """Marker and colour of a method: always the same for the same name, and another for each that `bench` knows."""
    if name in METHOD_STYLE:
        return METHOD_STYLE[name]
    return OTHER_SHAPES[sum(name.encode()) % len(OTHER_SHAPES)], "c5"


def _label(name: str) -> str:
    """A name in a legend: matplotlib takes what is between dollars for a formula, and leaves out `_hidden` names."""
    short = name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}\N{HORIZONTAL ELLIPSIS}"
    return ("\N{ZERO WIDTH SPACE}" if short.startswith("_") else "") + short.replace("$", r"\$")


def _below(names: int) -> float:
    """Inches that a legend of three columns takes beyond what a figure has room for."""
    return 0.22 * max(0, -(-names // 3) - MOST_ROWS)


MOST_TOKENS, MOST_BOUNDARIES = 2000, 60
"""Of a trace: up to so many tokens, their signals are drawn at each; up to so many boundaries, each has a line."""

Points = Sequence[tuple[int, float]]
"""(optimizer step, value)."""

SIGNAL_LOSSES = "Signal losses"

SERIES = ("c1", "c2", "c3", "c4", "c5")

LEAST_LEFT = 0.1
"""Fewest tokens left that are drawn: below it the logarithmic axis would be of nothing but fractions of a token."""


def _line(i: int) -> dict[str, Any]:
    """How the i-th of some lines is drawn: neither by colour alone nor by dashes alone is it told from the others."""
    return {"color": PALETTE[SERIES[i % len(SERIES)]], "linestyle": ("-", *DASHES)[i % (1 + len(DASHES))]}


@dataclass(frozen=True)
class Spot:
    """A setting of a method in the plane of accuracy and thinking."""

    name: str
    setting: str
    tokens: float
    """Mean thinking tokens."""
    probes: float | None
    """Mean tokens of trial answers; None where they were not counted apart."""
    accuracy: float


def accuracy_chart(
    served: Sequence[Spot], oracle: Spot | None, curves: Mapping[str, Sequence[Spot]], *, small: bool = False
) -> str:
    """Accuracy against mean thinking tokens: methods and oracle as points, replayed methods as curves.

    Args:
      served: one spot a method.
      oracle: what hindsight gives, where it is known.
      curves: method -> its settings in order.
      small: one of several side by side, which have no legend.
    """
    legend = _below(len(served) + len(curves) + 1)
    with _figure(*((4.2, 3.0) if small else (8.0, 4.2 + legend))) as figure:
        axes = figure.subplots()
        _replayed(axes, curves)
        for spot in served:
            shape, color = style_of(spot.name)
            size = 90 if spot.name == "none" else 55  # lossless speculation puts eagle3 on top of it
            label = "oracle, served" if spot.name == "oracle" else _label(spot.name)
            at = spot.tokens, 100 * spot.accuracy
            # Without thinking, the mark is on the axis, which would cut it in half.
            axes.scatter(*at, marker=shape, s=size, color=PALETTE[color], label=label, zorder=3, clip_on=False)
        if oracle:
            at = oracle.tokens, 100 * oracle.accuracy
            axes.scatter(*at, marker="*", s=170, color=PALETTE["ink"], label="oracle", zorder=2)
        axes.set_xlabel("mean thinking tokens (fewer is better)")
        axes.set_ylabel("accuracy, %")
        axes.set_xlim(left=0)
        # Curves run down to no accuracy at all; what matters lies where the methods are.
        axes.set_ylim(max(-2, 100 * min(spot.accuracy for spot in served) - 20), 102)
        axes.grid(color=PALETTE["faint"], alpha=0.25, lw=0.6)
        if not small:
            figure.legend(loc="outside lower center", ncols=3, frameon=False)
        return _svg(figure)


def _replayed(axes: Axes, curves: Mapping[str, Sequence[Spot]]) -> None:
    own = {"validity": "c2", "budget": "c4"}
    dashes = cycle(DASHES)
    for curve, spots in curves.items():
        color, style = (own[curve], "-") if curve in own else ("c5", next(dashes))
        x, y = [spot.tokens for spot in spots], [100 * spot.accuracy for spot in spots]
        axes.plot(x, y, color=PALETTE[color], linestyle=style, lw=1.2, alpha=0.7, label=f"{_label(curve)}, replayed")


def curves_chart(curves: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, top: float) -> str:
    """Named curves, or single points, in one frame.

    Args:
      curves: name -> (x, y) in order.
      x, y: what the axes say.
      top: the highest y that is shown.
    """
    with _figure(8.0, 4.2) as figure:
        axes = figure.subplots()
        for i, (name, points) in enumerate(curves.items()):
            if points:
                xs, ys = zip(*points, strict=True)
                marker = "o" if len(points) == 1 else None
                axes.plot(xs, ys, **_line(i), marker=marker, lw=1.4, label=name.replace("$", r"\$"))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_ylim(-top / 20, top)
        if seen := [at for points in curves.values() for at, height in points if height <= top]:
            margin = max(1.0, (max(seen) - min(seen)) / 20)
            axes.set_xlim(min(seen) - margin, max(seen) + margin)
        axes.grid(color=PALETTE["faint"], alpha=0.25, lw=0.6)
        figure.legend(loc="outside right upper", frameon=False)
        return _svg(figure)


def standalone(svg: str) -> str:
    """A chart as a file of its own: its colours inside, for light and dark mode."""
    light = ("#1b1b1f", "#6b6b76", "#3457d5", "#0f8a5f", "#b3541e", "#8a3ffc", "#c2185b", "#9aa0a6")
    dark = ("#ececf1", "#a0a0ab", "#8aa4ff", "#4fd1a1", "#f2a66b", "#c4a1ff", "#ff85b3", "#70757a")

    def rule(colors: Sequence[str]) -> str:
        return ":root{" + "".join(f"--{name}:{color};" for name, color in zip(PALETTE, colors, strict=True)) + "}"

    style = f"<style>{rule(light)}@media(prefers-color-scheme:dark){{{rule(dark)}}}</style>"
    end = svg.index(">") + 1
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg[:end]}{style}{svg[end:]}\n'


def threshold_chart(points: Sequence[tuple[float, float, float]], mark: float | None = None) -> str:
    """Accuracy and cut over the validity threshold, from (threshold, cut, accuracy) of replayed policies; ``mark`` is a
    threshold that is pointed out."""
    with _figure(8.0, 3.4) as figure:
        axes = figure.subplots()
        thresholds, cut, accuracy = np.array(points).T
        lines = {"accuracy": (100 * accuracy, "c1", "-"), "thinking cut": (100 * cut, "c2", "--")}
        for name, (values, color, style) in lines.items():
            axes.plot(thresholds, values, color=PALETTE[color], lw=1.4, ls=style, label=name)
        if mark is not None:
            axes.axvline(mark, color=PALETTE["ink"], lw=1.2)
        axes.set_xlabel("validity that ends the thinking")
        axes.set_ylabel("%")
        axes.grid(color=PALETTE["faint"], alpha=0.25, lw=0.6)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return _svg(figure)


def longest_drawn(times: Mapping[str, Sequence[float]]) -> float | None:
    """Seconds at which `latency_chart` ends, where some took longer: one method's tail would leave the others no room.

    It is half again what 95 % of the requests took in the slowest method, so that every line is seen up to there.
    """
    end = 1.5 * max((float(np.quantile(seconds, 0.95)) for seconds in times.values() if seconds), default=0.0)
    return end if any(taken > end for seconds in times.values() for taken in seconds) else None


def latency_chart(times: Mapping[str, Sequence[float]]) -> str:
    """Share of requests answered within so many seconds, by method; lines of one colour have different dashes."""
    dashes = defaultdict(lambda: cycle(DASHES))
    with _figure(8.0, 3.8 + _below(len(times))) as figure:
        axes = figure.subplots()
        for name, seconds in times.items():
            ordered = np.sort(np.array(seconds))
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            color = style_of(name)[1]
            line = {"color": PALETTE[color], "linestyle": next(dashes[color]), "label": _label(name)}
            axes.step([0, *ordered], [0, *(100 * share)], where="post", lw=1.4, **line)
        axes.set_xlabel("seconds")
        axes.set_ylabel("requests answered, %")
        axes.set_xlim(0, longest_drawn(times))
        axes.grid(color=PALETTE["faint"], alpha=0.25, lw=0.6)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        return _svg(figure)


def drawn_tokens(n: int, boundaries: Sequence[int]) -> Int[np.ndarray, " drawn"]:
    """Thinking tokens, counted from 1, whose signals are drawn: all of them, and of a long trace the boundaries alone,
    as nobody could see the others, and nothing is judged there."""
    return np.arange(1, n + 1) if n <= MOST_TOKENS else np.array(boundaries, np.int64)


def signals_chart(
    signals: Float[np.ndarray, "think signals"],
    boundaries: Sequence[int],
    kept: int,
    policy: Policy | None,
    ended: str,
) -> str:
    """The signals of one trace over its thinking tokens, its boundaries, and where its thinking ended.

    Args:
      signals: values after the activation.
      boundaries: offsets just behind a split token.
      kept: thinking tokens before that end.
      policy: its thresholds are drawn.
      ended: what that end was, in words.
    """
    with _figure(8.0, 4.2) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        judged, few = np.array(boundaries, np.int64), len(boundaries) <= MOST_BOUNDARIES
        drawn = drawn_tokens(len(signals), boundaries)
        marked = {"markevery": np.isin(drawn, judged).tolist(), "ms": 4 if few else 2, "mew": 0}
        for name in NAMES:
            axes = top if SIGNALS[column(name)].activation == "sigmoid" else bottom
            color, style, marker = SIGNAL_STYLE[name]
            line = {"color": PALETTE[color], "ls": style, "marker": marker, "label": name}
            axes.plot(drawn, signals[drawn - 1, column(name)], lw=1.0, **line, **marked)
            if policy and name in policy.thresholds:
                axes.axhline(policy.thresholds[name], color=PALETTE[color], lw=0.9, ls=(0, (4, 3)))
        for axes in (top, bottom):
            for boundary in boundaries if few else ():
                axes.axvline(boundary, color=PALETTE["faint"], alpha=0.35, lw=0.6)
            axes.axvspan(0, kept, color=PALETTE["kept"], alpha=0.12, lw=0)
            axes.axvline(kept, color=PALETTE["ink"], lw=1.6)
        side = "center" if kept < len(signals) else "right"
        top.annotate(ended, (kept, 1.06), ha=side, va="bottom", annotation_clip=False, weight="bold")
        top.set_ylim(-0.03, 1.05)
        top.set_xlim(0, len(signals))
        top.set_ylabel("probability or share")
        bottom.set_yscale("log")
        low, high = bottom.get_ylim()
        bottom.set_ylim(max(low, LEAST_LEFT), max(high, 10 * LEAST_LEFT))
        bottom.set_ylabel("tokens left")
        bottom.set_xlabel("thinking token")
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        return _svg(figure)


def oracle_chart(curve: Sequence[CurvePoint]) -> str:
    """What holds of all traces after a share of their thinking: settled, the full trace's answer, the right answer."""
    if all(point.settled is None for point in curve):
        name, passed = "exit point passed for good", [point.settled_stable for point in curve]
    else:
        name, passed = "exit point passed", [point.settled for point in curve]
    lines = {
        name: passed,
        "the full trace's answer": [point.ending.agreement for point in curve],
        "the right answer": [point.ending.accuracy for point in curve],
    }
    lines = {name: shares for name, shares in lines.items() if len(shares) - shares.count(None) > 1}  # no line of one
    with _figure(8.0, 3.6) as figure:
        axes = figure.subplots()
        fractions = [100 * point.fraction for point in curve]
        # Where every answer is right, the last line covers the one before it but for its gaps.
        looks = (("c2", "o", "-"), ("c1", "s", "-"), ("c3", "^", (0, (3, 3))))
        for (name, shares), (color, marker, style) in zip(lines.items(), looks, strict=False):
            values = [float("nan") if share is None else 100 * share for share in shares]
            axes.plot(fractions, values, color=PALETTE[color], marker=marker, ms=5, lw=1.6, ls=style, label=name)
        axes.set_xlabel("share of the thinking that has been written, %")
        axes.set_ylabel("traces, %")
        axes.set_xlim(0, 102)
        axes.set_ylim(-2, 102)
        axes.grid(color=PALETTE["faint"], alpha=0.25, lw=0.6)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        return _svg(figure)


def training_lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Points]]:
    """Training curves over optimizer steps, from the lines of ``metrics.jsonl``.

    Returns:
      title -> line -> its points: token loss and top-1 per training-time-test (TTT) step, which a frozen trunk has none
      of, and the loss of each signal. A step whose batch counts nothing has no point.
    """
    # A run may begin with fewer TTT steps than it ends with: a curve starts where its step does.
    n_ttt = max(len(row["token_loss"]) for row in rows)

    def per_ttt_step(key: str, scale: float = 1.0) -> dict[str, Points]:
        return {
            f"draft token {k + 1}": [
                (row["step"], scale * row[key][k]) for row in rows if len(row[key]) > k and row[key][k] is not None
            ]
            for k in range(n_ttt)
        }

    found = {
        "Token loss, nats": per_ttt_step("token_loss"),
        "Draft token top-1, %": per_ttt_step("top1", 100.0),
        SIGNAL_LOSSES: {
            name: [(row["step"], row["signal_loss"][name]) for row in rows if row["signal_loss"][name] is not None]
            for name in rows[0]["signal_loss"]
        },
    }
    drawn = {title: {name: points for name, points in lines.items() if points} for title, lines in found.items()}
    return {title: lines for title, lines in drawn.items() if lines}


def steps_chart(lines: Mapping[str, Points], *, log: bool = False, zero: bool = False) -> str:
    """Named lines over optimizer steps, one of several such charts side by side.

    Args:
      lines: name -> its points.
      log: whether the values' axis is logarithmic.
      zero: whether it begins at zero, so that heights can be compared.
    """
    with _figure(4.2, 3.0) as figure:
        axes = figure.subplots()
        for i, (name, points) in enumerate(lines.items()):
            line, marker = _line(i), "o"
            if name in SIGNAL_STYLE:
                color, style, marker = SIGNAL_STYLE[name]
                line = {"color": PALETTE[color], "linestyle": style}
            axes.plot(*np.array(points).T, **line, marker=marker if len(points) == 1 else None, lw=1.3, label=name)
        if log:
            axes.set_yscale("log")
        if zero:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("optimizer step")
        axes.grid(color=PALETTE["faint"], alpha=0.25, lw=0.6)
        if len(lines) > 1:
            if log:  # losses that go up and down leave no free corner
                axes.set_ylim(top=axes.get_ylim()[1] * 100)
            axes.legend(frameon=False, **({"loc": "upper right", "ncols": 2} if log else {}))
        return _svg(figure)


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """A figure in the house style. It never touches pyplot, so it needs no display and leaves no global state."""
    import matplotlib
    from matplotlib.figure import Figure

    ink = PALETTE["ink"]
    style: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text: it can be selected, found and read aloud
        "svg.hashsalt": f"{width}x{height}",
        "font.family": "sans-serif",
        "font.size": 10,
        "legend.handlelength": 3.5,  # the longest of `DASHES` twice
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), ink),
    }
    with matplotlib.rc_context(style):
        yield Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for variable, stand_in in PALETTE.items():
        text = text.replace(stand_in, f"var(--{variable})")
    # The page sets the width; the drawing keeps its aspect through the viewBox.
    return re.sub(
        r'<svg ([^>]*?)width="[^"]*"',
        r"<svg \1",
        re.sub(r'(<svg [^>]*?)height="[^"]*" ', r"\1", text, count=1),
        count=1,
    )
