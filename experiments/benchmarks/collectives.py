"""What a compiled program sends between devices, read from its HLO text; knows no backend and runs nothing.

    text = jax.jit(f).lower(*arguments).compile().as_text()
    for found in collectives(text): print(found.kind, found.bytes, found.trips)

The text has one instruction a line. A collective inside a loop stands there once, so each one comes with how often
its loops run, from XLA's own `known_trip_count` or, where a backend drops that (TPU does), from the loop's counter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
         "collective-broadcast")  # fmt: skip
BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}  # others end in their width: f32, s8, u64, c64, f8e4m3fn

_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,<=? ]*)\]")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (.*)")
_OPCODE = re.compile(r"\s*([a-z][a-z0-9\-]*)\(")
_HEADER = re.compile(r"\s*(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_LISTS = re.compile(r"(?:calls|branch_computations|called_computations)=\{([^}]*)\}")


class Collective(NamedTuple):
    """One collective instruction.

    Attributes:
      kind: one of ``KINDS``.
      dtype: element type in HLO's words ('f32', 'bf16'); several joined by '+'.
      bytes: of its output on one device, once: what all-gather has gathered, what reduce-scatter has kept.
      trips: how often one call of the program runs it: the product of the known trip counts of its loops.
      known: False where a loop around it has no known trip count; ``trips`` then counts that loop once.
      group: devices that exchange with each other; 0 where the text names pairs (collective-permute) or nobody.
      computation: the HLO computation it stands in.
      shape: its output in HLO's words, without layouts.
      source: JAX's name of the operation it comes from, or ''.
    """

    kind: str
    dtype: str
    bytes: int
    trips: int
    known: bool
    group: int
    computation: str
    shape: str
    source: str


class Instruction(NamedTuple):
    """One line of a computation: ``name = shape opcode(operands), attributes``."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    attributes: str
    root: bool

    def attribute(self, key: str) -> str:
        """The word after ``key=``, without its percent sign; '' where it is absent."""
        found = re.search(rf"\b{key}=\"?%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]


def collectives(hlo_text: str) -> list[Collective]:
    """Every collective of a program, in the order of the text's calls from its entry.

    Asynchronous ones (`-start`, `-done`) count once, with the bytes of their result. TPU's two disguises are seen
    through: an asynchronous collective spread over several fusions (one `chain_id`) counts once, and a fusion of an
    all-reduce and a slice ('all-reduce-scatter') is a reduce-scatter. Both sides of a conditional are listed.

    Args:
      hlo_text: ``compiled.as_text()``: HLO after partitioning, so that shapes are those of one device.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry = parse(hlo_text)
    cache: dict[str, list[tuple[Collective, Any]]] = {}
    seen: set[Any] = set()
    found = []
    for collective, identity in _walk(entry, computations, cache):
        if identity is None or identity not in seen:
            found.append(collective)
        seen.add(identity)
    return found


def totals(found: Iterable[Collective]) -> dict[str, dict[str, Any]]:
    """By kind: instructions, calls, bytes of one pass over the text, bytes with trips, and whether all are known.

    Example:
      >>> one = Collective("all-reduce", "f32", 8, 3, True, 8, "main", "f32[2]", "")
      >>> totals([one, one._replace(trips=1)])
      {'all-reduce': {'instructions': 2, 'calls': 4, 'bytes_once': 16, 'bytes': 32, 'trips_known': True}}
    """
    table: dict[str, dict[str, Any]] = {}
    for one in found:
        row = table.setdefault(
            one.kind, {"instructions": 0, "calls": 0, "bytes_once": 0, "bytes": 0, "trips_known": True}
        )
        row["instructions"] += 1
        row["calls"] += one.trips
        row["bytes_once"] += one.bytes
        row["bytes"] += one.bytes * one.trips
        row["trips_known"] &= one.known
    return table


def shape_bytes(shape: str) -> int:
    """Bytes of an HLO shape, tuples included; layouts and padding to tiles do not count.

    Example:
      >>> shape_bytes("(bf16[8,4]{1,0:T(8,128)(2,1)}, u32[])"), shape_bytes("pred[3]"), shape_bytes("s4[3]")
      (68, 3, 2)
    """
    return sum(math.ceil(_bits(dtype) * _elements(sizes) / 8) for dtype, sizes in _ARRAY.findall(shape))


def parse(hlo_text: str) -> tuple[dict[str, Computation], str]:
    """Computations by name, each its instructions by name, and the entry's name."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in hlo_text.splitlines():
        header = _HEADER.match(line) if current is None else None
        if header:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif line.strip() == "}":
            current = None
        elif current is not None:
            instruction = _instruction(line)
            if instruction:
                current[instruction.name] = instruction
    if not entry:
        raise ValueError("the text has no ENTRY computation: it is not the text of an HLO module")
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    rest = match[3]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    opcode = _OPCODE.match(rest, end)
    if not opcode:
        return None
    close = _closing(rest, opcode.end() - 1)
    operands = re.findall(r"%([\w.\-]+)", rest[opcode.end() : close]) or [rest[opcode.end() : close].strip()]
    return Instruction(match[2], rest[:end], opcode[1], operands, rest[close + 1 :], bool(match[1]))


def _closing(text: str, start: int) -> int:
    """Where the parenthesis at ``start`` closes; layouts hold balanced ones."""
    depth = 0
    for bracket in re.finditer(r"[()]", text[start:]):
        depth += 1 if bracket[0] == "(" else -1
        if depth == 0:
            return start + bracket.start()
    return len(text) - 1


def _bits(dtype: str) -> int:
    if dtype in BITS:
        return BITS[dtype]
    width = re.match(r"[a-z]+(\d+)", dtype)
    return int(width[1]) if width else 0


def _elements(sizes: str) -> int:
    return math.prod(int(size.strip("<=? ") or 0) for size in sizes.split(",")) if sizes.strip() else 1


def _walk(name: str, computations: dict[str, Computation], cache: dict[str, Any]) -> list[tuple[Collective, Any]]:
    """Collectives below a computation, trips counted from it, each with what identifies its parts (or None)."""
    if name in cache:
        return cache[name]
    cache[name] = found = []
    here = computations.get(name, {})
    for instruction in here.values():
        kind = _kind(instruction.opcode)
        if kind:
            found.append(_collective(name, kind, instruction, here))
        if instruction.opcode == "while":
            body, condition = instruction.attribute("body"), instruction.attribute("condition")
            trips = trip_count(instruction, here, computations)
            found += _repeated(_walk(body, computations, cache), trips)
            found += _repeated(_walk(condition, computations, cache), None if trips is None else trips + 1)
            continue
        for called in _called(instruction):
            found += _walk(called, computations, cache)
    return found


def _repeated(inner: list[tuple[Collective, Any]], trips: int | None) -> list[tuple[Collective, Any]]:
    times = 1 if trips is None else trips
    known = trips is not None
    return [(one._replace(trips=one.trips * times, known=one.known and known), identity) for one, identity in inner]


def _kind(opcode: str) -> str:
    """The kind that an opcode starts or is; '' for `-done`, `-update` and everything else."""
    name = opcode.removesuffix("-start")
    return name if name in KINDS else ""


def _collective(name: str, kind: str, instruction: Instruction, here: Computation) -> tuple[Collective, Any]:
    shape = instruction.shape
    if instruction.opcode.endswith("-start") and kind != "all-reduce":  # (operands, results, context …)
        shape = _members(shape)[1]
    if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
        kind, shape = "reduce-scatter", next(i.shape for i in here.values() if i.root)
    arrays = _ARRAY.findall(shape)
    plain = ", ".join(f"{dtype}[{sizes}]" for dtype, sizes in arrays)
    source = re.search(r'op_name="([^"]*)"', instruction.attributes)
    chain, channel = instruction.attribute("chain_id"), instruction.attribute("channel_id")
    one = Collective(
        kind=kind,
        dtype="+".join(dict.fromkeys(dtype for dtype, _ in arrays)),
        bytes=shape_bytes(shape),
        trips=1,
        known=True,
        group=group_size(instruction.attributes),
        computation=name,
        shape=f"({plain})" if len(arrays) > 1 else plain,
        source=source[1] if source else "",
    )
    return one, (kind, chain, channel) if chain else None


def group_size(attributes: str) -> int:
    """Devices of one replica group, from any of the three ways HLO writes them; 0 where it writes none.

    Example:
      >>> group_size("replica_groups={{0,1,2},{3,4,5}}"), group_size("replica_groups=[2,8]<=[8,2]T(1,0)")
      (3, 8)
      >>> group_size("replica_groups=mesh['axis_0'=8,'axis_1'=2,'axis_2'=3] {'axis_0','axis_2'}")
      24
    """
    listed = re.search(r"replica_groups=\{\{([0-9,]*)\}", attributes)
    if listed:
        return len(listed[1].split(","))
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes)
    if iota:
        return int(iota[1])
    axes = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes)
    if not axes:
        return 0
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes[1])}
    used = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", axes[2])  # part of an axis is written 'axis':(before)size
    return math.prod(int(part) if part else sizes[name] for name, part in used)


def _members(shape: str) -> list[str]:
    """The members of a tuple shape, commas within them kept."""
    inner, depth, members = shape.strip()[1:-1], 0, [""]
    for character in inner:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            members.append("")
        else:
            members[-1] += character
    return members


def _called(instruction: Instruction) -> Iterator[str]:
    if instruction.opcode.removesuffix("-start") in KINDS or instruction.opcode in ("reduce", "sort", "scatter"):
        return  # what they call adds two numbers
    yield from _CALLED.findall(instruction.attributes)
    for names in _CALLED_LISTS.findall(instruction.attributes):
        yield from re.findall(r"[\w.\-]+", names)


def trip_count(loop: Instruction, here: Computation, computations: dict[str, Computation]) -> int | None:
    """How often a while loop's body runs; None where neither XLA says so nor its counter does.

    The counter: an integer that starts at a constant, to which the body adds a constant, and which the condition
    compares with a constant.
    """
    said = _KNOWN_TRIPS.search(loop.attributes)
    if said:
        return int(said[1])
    condition = computations.get(loop.attribute("condition"), {})
    body = computations.get(loop.attribute("body"), {})
    test = next((i for i in condition.values() if i.root), None)
    if test is None or test.opcode != "compare" or test.attribute("direction") != "LT":
        return None
    counter, limit = _origin(test.operands[0], condition), _constant(_origin(test.operands[1], condition))
    start_tuple, end_tuple = here.get(loop.operands[0]), next((i for i in body.values() if i.root), None)
    if counter is None or counter.opcode != "get-tuple-element" or start_tuple is None or end_tuple is None:
        return None
    if start_tuple.opcode != "tuple" or end_tuple.opcode != "tuple":
        return None
    index = int(counter.attribute("index"))
    start = _constant(_origin(start_tuple.operands[index], here))
    step = _step(end_tuple.operands[index], index, body, computations)
    if limit is None or start is None or not step:
        return None
    return max(0, math.ceil((limit - start) / step))


def _origin(name: str, here: Computation) -> Instruction | None:
    """The instruction of that name, or what it is a copy of."""
    instruction = here.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "reshape"):
        instruction = here.get(instruction.operands[0])
    return instruction


def _constant(instruction: Instruction | None) -> int | None:
    """The integer that a constant stands for."""
    if instruction is None or instruction.opcode != "constant":
        return None
    return int(instruction.operands[0]) if re.fullmatch(r"-?\d+", instruction.operands[0]) else None


def _step(name: str, index: int, body: Computation, computations: dict[str, Computation]) -> int | None:
    """What the body adds to the counter at ``index`` of its tuple, inside a fusion or not."""
    total = _origin(name, body)
    if total is None or total.opcode not in ("add", "fusion"):
        return None
    terms = [_origin(operand, body) for operand in total.operands]
    if total.opcode == "fusion":
        inside = computations.get(total.attribute("calls"), {})
        root = next((i for i in inside.values() if i.root), None)
        if root is None or root.opcode != "add":
            return None
        outer, terms = terms, [_origin(operand, inside) for operand in root.operands]
        terms = [outer[int(t.operands[0])] if t is not None and t.opcode == "parameter" else t for t in terms]
    steps = [_constant(t) for t in terms]
    counters = [t is not None and t.opcode == "get-tuple-element" and t.attribute("index") == str(index) for t in terms]
    return next((s for s in steps if s is not None), None) if len(terms) == 2 and any(counters) else None
