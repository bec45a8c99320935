"""Reads the text of a compiled program: what its chips send each other, how often, and along which mesh axis.

XLA's own cost analysis counts the body of a loop once, however often it runs; here each computation is weighted with
the number of times that it is called.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16}
"""Size of the types whose name does not end in it."""

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.* -> .*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\(")
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}"
)
LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
CONSTANT = re.compile(r"%?([\w.\-]+) = [su]\d+\[\]\S* constant\((\d+)\)")
ELEMENT = re.compile(r"%?([\w.\-]+) = [su]\d+\[\]\S* get-tuple-element\(.*\), index=(\d+)")
ADD = re.compile(r"%?([\w.\-]+) = [su]\d+\[\]\S* add\(([^)]*)\)")
BELOW = re.compile(r"ROOT .* compare\((.*?)\), direction=LT")
RESULT = re.compile(r"ROOT .* tuple\((.*?)\)")
NAME = re.compile(r"%([\w.\-]+)")
GROUPS = re.compile(r"replica_groups=\{\{([\d,]+)\}")
IOTA_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH_GROUPS = re.compile(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}")
PAIRS = re.compile(r"source_target_pairs=\{(\{.*?\})\}")
BETWEEN = re.compile(r'_xla_megascale_target="?\{([\d,]*).*_xla_megascale_transfer_type="(\w+)"')
"""Finds what a chip hands its host for the data centre's network. The groups are the slices that take part (none where
it is for a single chip) and the kind of transfer."""
SLICES = "dcn_data"
"""Axis of transfers between slices, called as in a recipe's ``mesh``."""
CHAIN = re.compile(r'channel_id=(\d+),.*chain_id="(\d+)"')
"""On TPUs a gather that overlaps with other work is in the text once for each piece of that work."""

SCATTER = "all-reduce-scatter"
"""How the name of a reduce-scatter's fusion begins: on TPUs it is an all-reduce, of which each chip keeps a part."""


@dataclass(frozen=True)
class Collective:
    """One collective instruction."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    """Of its results; of an asynchronous one, of its operands, too; of a scatter within a fusion, before it is cut."""
    axes: tuple[str, ...]
    """Mesh axes that it runs along."""
    times: int
    """Runs in one call of the program."""
    sent: float
    """Bytes that one chip sends in one run, by the best algorithm on a ring."""


def collectives(text: str, mesh: Mesh) -> list[Collective]:
    """Every collective of a compiled program.

    Args:
      text: ``compiled.as_text()``.
      mesh: of the devices of one slice. What is sent between slices comes under the axis `SLICES`.
    """
    bodies = computations(text)
    times = _times(bodies)
    seen: set[tuple[str, str]] = set()
    found = []
    for name, lines in bodies.items():
        for line in lines if times[name] else ():
            collective, chain = collective_of(line, mesh, times[name], name), CHAIN.search(line)
            if collective is None or (chain and (chain[1], chain[2]) in seen):
                continue
            if chain:
                seen.add((chain[1], chain[2]))
            found.append(collective)
    return found


def computations(text: str) -> dict[str, list[str]]:
    """Computations of a program's text: name -> lines; the entry comes under ``ENTRY``.

    A computation ends where the next begins: a brace at the start of a line may be part of a kernel's description.
    """
    bodies: dict[str, list[str]] = {}
    name = None
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            name = "ENTRY" if match[1] else match[2]
            bodies[name] = []
        elif name is not None:
            bodies[name].append(line)
    return bodies


def _times(bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs; a loop of unknown length counts once."""
    calls: dict[str, dict[str, int]] = {name: defaultdict(int) for name in bodies}
    for name, lines in bodies.items():
        for line in lines:
            loop = LOOP.search(line)
            for match in CALLED.finditer(line):
                for called in (match[1] or match[2]).split(","):
                    calls[name][called.strip(" %")] += trips(line, bodies[loop[1]], bodies[loop[2]]) if loop else 1
    times: dict[str, int] = defaultdict(int)

    def visit(name: str, runs: int) -> None:
        times[name] += runs
        for called, n in calls.get(name, {}).items():
            visit(called, runs * n)

    visit("ENTRY", 1)
    return times


def trips(line: str, condition: list[str], body: list[str]) -> int:
    """How often a loop runs: what the compiler says, or else its counter's limit divided by its step.

    XLA unrolls some loops, so that a counter moves by 2. A loop without a counter counts once.
    """
    if known := TRIPS.search(line):
        return int(known[1])

    def all_of(pattern: re.Pattern[str], lines: list[str]) -> dict[str, str]:
        return {match[1]: match[2] for line in lines if (match := pattern.search(line))}

    compared = [name for line in condition if (match := BELOW.search(line)) for name in NAME.findall(match[1])]
    limits, counters = all_of(CONSTANT, condition), all_of(ELEMENT, condition)
    limit = next((int(limits[name]) for name in compared if name in limits), None)
    place = next((int(counters[name]) for name in compared if name in counters), None)
    if limit is None or place is None:
        return 1
    results = [NAME.findall(match[1]) for line in body if (match := RESULT.search(line))]
    added = NAME.findall(all_of(ADD, body).get(results[-1][place], "")) if results else []
    constants = all_of(CONSTANT, body)
    step = next((int(constants[name]) for name in added if name in constants), 1)
    return max(1, limit // step)


def collective_of(line: str, mesh: Mesh, times: int, within: str = "") -> Collective | None:
    """The collective that an instruction is; None if it is another, or the end of one.

    Args:
      line: of the program's text.
      mesh: see `collectives`.
      times: how often the instruction runs in one call of the program.
      within: name of the computation that it is in.
    """
    match = INSTRUCTION.match(line)
    kind = match[2].removesuffix("-start") if match else ""
    if match is not None and kind == "send" and (transfer := BETWEEN.search(line)):
        return _between_slices(ARRAY.findall(match[1])[0], numbers(transfer[1]), transfer[2], times)
    if match is None or kind not in KINDS:
        return None
    arrays = [(dtype, numbers(dims)) for dtype, dims in ARRAY.findall(match[1])]
    members = _members(line, kind, mesh.size)
    sent = _sent(kind, sum(map(_bytes, arrays)), len(members), match[2].endswith("-start"))
    if kind == "collective-permute":
        sent = float(_bytes(arrays[0]))
    if kind == "all-reduce" and within.startswith(SCATTER):
        kind, sent = "reduce-scatter", sent / 2
    return Collective(kind, tuple(shape for _, shape in arrays), _axes(members, mesh), times, sent)


def _between_slices(given: tuple[str, str], slices: tuple[int, ...], transfer: str, times: int) -> Collective:
    """A transfer by way of the hosts, given what a chip hands over."""
    dtype, shape, n = given[0], numbers(given[1]), len(slices)
    share = (n - 1) / n if n else 1.0
    factors = {"ALL_REDUCE": 2 * share, "ALL_GATHER": n - 1, "REDUCE_SCATTER": share, "ALL_TO_ALL": share}
    sent = _bytes((dtype, shape)) * factors.get(transfer, 1.0)
    return Collective(transfer.lower().replace("_", "-"), (shape,), (SLICES,), times, sent)


def numbers(text: str) -> tuple[int, ...]:
    """Numbers of a list with commas, such as a shape.

    Example:
      >>> numbers("8,128")
      (8, 128)
    """
    return tuple(int(x) for x in text.split(",") if x)


def _bytes(array: tuple[str, tuple[int, ...]]) -> int:
    dtype, shape = array
    digits = re.search(r"\d+", dtype)
    bits = BITS.get(dtype) or int(digits[0] if digits else 0)
    return math.prod(shape) * bits // 8


def _members(line: str, kind: str, n: int) -> np.ndarray:
    """Devices of a collective's first group; of a permute, of its first pair of two devices."""
    if kind == "collective-permute":
        pairs = PAIRS.search(line)
        both = [numbers(pair) for pair in re.findall(r"\{([\d,]+)\}", pairs[1])] if pairs else []
        return np.array(next((pair for pair in both if pair[0] != pair[1]), (0,)))
    if groups := GROUPS.search(line):
        return np.array(numbers(groups[1]))
    if groups := IOTA_GROUPS.search(line):
        order = np.arange(n).reshape(numbers(groups[3]))
        order = order.transpose(numbers(groups[4])) if groups[4] else order
        return order.reshape(int(groups[1]), int(groups[2]))[0]
    if groups := MESH_GROUPS.search(line):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", groups[1]))
        along = re.findall(r"'(\w+)'", groups[2])
        order = np.arange(n).reshape([int(size) for size in axes.values()])
        order = np.moveaxis(order, [list(axes).index(axis) for axis in along], range(len(along)))
        return order.reshape(math.prod(int(axes[axis]) for axis in along), -1)[:, 0]
    return np.arange(n)


def _axes(members: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    places = np.array(np.unravel_index(members, mesh.devices.shape))
    return tuple(axis for axis, place in zip(mesh.axis_names, places, strict=True) if len(set(place)) > 1)


def _sent(kind: str, n_bytes: float, n: int, asynchronous: bool) -> float:
    """Bytes that a chip sends, given those of the results (and of the operands, of an asynchronous all-gather)."""
    if kind == "all-gather" and asynchronous:
        n_bytes *= n / (n + 1)
    factors = {
        "all-gather": (n - 1) / n,
        "all-to-all": (n - 1) / n,
        "all-reduce": 2 * (n - 1) / n,
        "reduce-scatter": n - 1,
        "collective-permute": 1,
    }
    return n_bytes * factors[kind]
