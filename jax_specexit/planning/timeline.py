"""What of a compiled program's collectives is exposed: how long a chip waits for them, and computes nothing.

A chip runs the instructions of a computation in the order in which the compiler has put them. The text is gone through
in that order with two clocks, one of the chip and one of its links: a product takes its FLOPs at the share of the peak
in `jax_specexit.planning.efficiency`, a collective the bytes that it sends at the links' rate. A collective whose start
and end are two instructions runs beside everything between them; where its end comes before it is done, the chip waits.
For any other the chip waits from beginning to end. Nothing else takes time: elementwise work may hide more, so less may
be exposed.

Links serve one collective after another, at all their bandwidth. Transfers between slices have a clock of their own.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from jax.sharding import Mesh

from jax_specexit.planning.efficiency import Efficiency
from jax_specexit.planning.hlo import (
    ARRAY,
    CALLED,
    CHAIN,
    KINDS,
    LOOP,
    NAME,
    SLICES,
    Collective,
    collective_of,
    computations,
    numbers,
    trips,
)
from jax_specexit.sharding import EXPERT
from specexit.chips import Chip

PRODUCTS, EXPERTS, ATTENTION = "products", "experts", "attention"
"""What a chip computes, see `Efficiency`."""

PARTS = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>\(.*?\)|\S+) (?P<op>[\w\-]+)\((?P<operands>[^)]*)\)")
DILATED = re.compile(r"window=\{size=([\dx]+)[^}]*lhs_dilate=([\dx]+)")
BATCH_OF_DOT = re.compile(r"lhs_batch_dims=\{([\d,]+)\}")
RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]+)"')
LAYOUTS = re.compile(r"operand_layout_constraints=\{(.*?\})\}")
KERNELS = {"splash_mha_fwd": (4.0, "forward"), "splash_mha_dkv": (10.0, "backward")}
"""Begin of a kernel's name -> FLOPs per pair of query and key and per dimension, and which `Efficiency` it reaches."""


Spent = dict[str, float]
"""Seconds by what they go to."""


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    type: str
    op: str
    operands: list[str]
    line: str


@dataclass(frozen=True)
class Program:
    """A compiled program, and what it runs on."""

    bodies: dict[str, list[str]]
    mesh: Mesh
    chip: Chip
    efficiency: Efficiency

    @cached_property
    def instructions(self) -> dict[str, list[Instruction]]:
        """Instructions of each computation, in order."""
        return {name: list(_instructions(lines)) for name, lines in self.bodies.items()}

    @cached_property
    def types(self) -> dict[str, dict[str, str]]:
        """Types of the results in each computation, by name."""
        return {name: {one.name: one.type for one in found} for name, found in self.instructions.items()}


def timeline(text: str, mesh: Mesh, chip: Chip, efficiency: Efficiency) -> Spent:
    """Seconds of one run by what a chip does: products, experts' products, attention, or waits, by mesh axes.

    Args:
      text: ``compiled.as_text()``, of a program whose instructions are in order.
      mesh: of the devices of one slice; waits for other slices come under the axis `SLICES`.
      chip: it runs on.
      efficiency: of its products.
    """
    return _spent(Program(computations(text), mesh, chip, efficiency), "ENTRY")


def _instructions(lines: list[str]) -> Iterator[Instruction]:
    for line in lines:
        if match := PARTS.match(line):
            yield Instruction(match["name"], match["type"], match["op"], NAME.findall(match["operands"]), line)


def _spent(program: Program, name: str) -> Spent:
    """Time of one run of a computation, which ends when every transfer that it has started is done."""
    spent: Spent = {}
    free: dict[bool, float] = defaultdict(float)  # when the links within the slice, and out of it, have sent everything
    under_way: dict[str, tuple[float, str]] = {}
    rendezvous: dict[str, str] = {}
    for one in program.instructions[name]:
        _add(spent, _work(program, one, name))
        if one.op == "recv" and (met := RENDEZVOUS.search(one.line)):
            rendezvous[one.name] = met[1]
        key, sent, ends = _transfer(program, one, rendezvous)
        if sent is not None and sent.axes and key not in under_way:
            over = sent.axes == (SLICES,)
            free[over] = max(_total(spent), free[over]) + _seconds(sent, program.chip)
            under_way[key] = (free[over], "+".join(sent.axes))
        if ends:
            _wait(spent, under_way, key)
    for key in list(under_way):
        _wait(spent, under_way, key)
    return spent


def _wait(spent: Spent, under_way: dict[str, tuple[float, str]], key: str) -> None:
    """Wait until a transfer is done; one of another computation, or within one chip, takes no wait."""
    until, axes = under_way.pop(key, (0.0, ""))
    if until > (now := _total(spent)):
        _add(spent, {axes: until - now})


def _add(spent: Spent, more: Spent, times: int = 1) -> None:
    for part, seconds in more.items():
        spent[part] = spent.get(part, 0.0) + times * seconds


def _total(spent: Spent) -> float:
    return sum(spent.values())


def _seconds(sent: Collective, chip: Chip) -> float:
    rate = chip.dcn_bytes_per_second if sent.axes == (SLICES,) else chip.ici_bytes_per_second
    return sent.sent / rate if rate else 0.0


def _transfer(program: Program, one: Instruction, rendezvous: dict[str, str]) -> tuple[str, Collective | None, bool]:
    """An instruction's transfer: the key that start and end have in common, what is sent, and whether it ends here.

    On TPUs an asynchronous gather is three or more fusions with the same collective in each: one that starts it, one
    that ends it, and in between those that it overlaps with.
    """
    if one.op == "send":
        met = RENDEZVOUS.search(one.line)
        return met[1] if met else one.name, collective_of(one.line, program.mesh, 1), False
    if one.op == "recv-done":
        return rendezvous.get(one.operands[0], ""), None, True
    if one.op.removesuffix("-start") in KINDS:
        return one.name, collective_of(one.line, program.mesh, 1), not one.op.endswith("-start")
    if one.op.removesuffix("-done") in (*KINDS, "async"):
        return one.operands[0], None, True
    if one.op not in ("fusion", "async-start"):
        return "", None, False
    inner = [(called, line) for called in _called(one) for line in program.bodies[called]]
    found = [(line, c) for called, line in inner if (c := collective_of(line, program.mesh, 1, called))]
    if not found:
        return "", None, False
    line, sent = found[0]
    chain = CHAIN.search(line)
    key = " ".join(chain.groups()) if chain else one.name
    if any("AsyncCollectiveDone" in line for _, line in inner):
        return key, None, True
    apart = chain is not None or one.op == "async-start"
    return key, sent, not apart


def _called(one: Instruction) -> list[str]:
    names = (match[1] or match[2] for match in CALLED.finditer(one.line))
    return [name.strip(" %") for several in names for name in several.split(",")]


def _work(program: Program, one: Instruction, within: str) -> Spent:
    """Seconds that a chip computes for one instruction, and waits in the computations that it calls."""
    spent: Spent = {}
    if loop := LOOP.search(one.line):
        times = trips(one.line, program.bodies[loop[1]], program.bodies[loop[2]])
        _add(spent, _spent(program, loop[2]), times)
    elif one.op == "conditional":
        return max((_spent(program, name) for name in _called(one)), key=_total)
    elif one.op == "call":
        for name in _called(one):
            _add(spent, _spent(program, name))
    elif one.op == "fusion":  # its collectives are `_transfer`'s
        for name in _called(one):
            for inner in program.instructions[name]:
                _add(spent, _work(program, inner, name))
    elif one.op in ("convolution", "dot"):
        spent[PRODUCTS] = _product(program, one, within)
    elif one.op == "custom-call":
        return _kernel(program, one)
    return spent


def _product(program: Program, one: Instruction, within: str) -> float:
    """Seconds of a matrix product, in whatever layout: both matrices' sizes and the result's tell its FLOPs.

    Of ``[b, m, k] @ [b, k, n]`` they are b m k, b k n and b m n, the root of whose product over b is b m k n.
    """
    types = program.types[within]
    arrays = [ARRAY.findall(kind)[0] for kind in (types[one.operands[0]], types[one.operands[1]], one.type)]
    batch = 1
    if dilated := DILATED.search(one.line):
        sizes = (tuple(map(int, group.split("x"))) for group in dilated.groups())
        batch = math.prod(size for size, dilation in zip(*sizes, strict=True) if dilation > 1)
    elif match := BATCH_OF_DOT.search(one.line):
        batch = math.prod(numbers(arrays[0][1])[axis] for axis in numbers(match[1]))
    flops = 2 * math.sqrt(math.prod(math.prod(numbers(shape)) for _, shape in arrays) / batch)
    return flops / (_peak(program, arrays[0][0]) * program.efficiency.products)


def _kernel(program: Program, one: Instruction) -> Spent:
    """Attention's kernels and `jax.lax.ragged_dot`'s, by the shapes that they are handed."""
    layouts = LAYOUTS.search(one.line)
    given = [(dtype, numbers(shape)) for dtype, shape in ARRAY.findall(layouts[1])] if layouts else []
    for begin, (each, way) in KERNELS.items():
        if one.name.startswith(begin):
            # In front of these are integers, which say which tiles to visit.
            (dtype, q), (_, k) = [array for array in given if array[0] in ("bf16", "f32")][:2]
            flops = each / 2 * math.prod(q) * k[-2]  # causal: half of all pairs
            return {ATTENTION: flops / (_peak(program, dtype) * getattr(program.efficiency, way))}
    if one.name.startswith("ragged-dot") and len(given) > 2:
        (dtype, rows), (_, matrices) = given[-2:]
        own = math.prod(rows) / program.mesh.shape[EXPERT]  # of the rows that are here, evenly
        return {EXPERTS: 2 * own * matrices[-1] / (_peak(program, dtype) * program.efficiency.experts)}
    return {}


def _peak(program: Program, dtype: str) -> float:
    return program.chip.int8_flops if dtype == "s8" else program.chip.flops
