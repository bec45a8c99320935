"""YAML as configs have it: numbers as in YAML 1.2, no key there twice, JSON's escapes read as JSON reads them, and what
aliases stand for is bounded."""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar

import yaml

INT, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"

_WHOLE = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)\Z")
_POINT = re.compile(
    r"""(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))\Z""",
    re.VERBOSE,
)
"""To PyYAML, which reads YAML 1.1, 1e-6 and 1.0e6 are texts, and 1:30 is ninety."""


class _Loader(yaml.SafeLoader):
    """YAML in which no key hides another, numbers are those of YAML 1.2 (010 is ten), and characters are whole."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, form) for tag, form in forms if tag not in (INT, FLOAT)]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode | None:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value if node is not None else ():
            if key.value == "<<" or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return int(node.value) if re.fullmatch(r"[-+]?0\d+", node.value) else super().construct_yaml_int(node)

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        # JSON writes a character beyond U+FFFF as two escapes, which PyYAML leaves apart.
        try:
            return super().construct_yaml_str(node).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise yaml.MarkedYAMLError(
                problem="holds half a character, expected text", problem_mark=node.start_mark
            ) from error


_Loader.add_constructor(INT, _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_yaml_str)
_Loader.add_implicit_resolver(INT, _WHOLE, list("-+0123456789"))
_Loader.add_implicit_resolver(FLOAT, _POINT, list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """YAML with quotes around what is a number to `_Loader` or in YAML 1.1, and is a text."""


_Dumper.add_implicit_resolver(FLOAT, _POINT, list("-+.0123456789"))


MAX_WRITTEN_OUT = 1_000_000
"""Most characters and values of a YAML with its aliases written out: a few hundred bytes can stand for more than memory
holds."""


def parse_yaml(text: str) -> Any:
    """The value that a YAML text stands for; None for an empty one.

    Raises:
      yaml.YAMLError: it is no YAML, a key is there twice, a value is none of its kind, or its aliases stand for more
        than `MAX_WRITTEN_OUT`.
      RecursionError: it is nested without end.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _written_out(node, {}) > max(MAX_WRITTEN_OUT, 4 * len(text)):  # the second: what has no aliases may be long
            raise yaml.YAMLError(f"its aliases stand for more than {MAX_WRITTEN_OUT} characters")
        try:
            return loader.construct_document(node)
        except (ValueError, KeyError, AttributeError, TypeError) as error:  # such as 2026-02-30, or "!!int x"
            raise yaml.YAMLError(f"a value is none of its kind: {error}") from error
    finally:
        loader.dispose()


def dump_yaml(value: Any, **options: Any) -> str:
    """A YAML text for a value, its keys in their order, that `parse_yaml` and readers of YAML 1.1 take for it.

    Args:
      value: of plain Python types.
      options: of ``yaml.dump``.
    """
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, **options)


def _written_out(node: yaml.Node, found: dict[int, float]) -> float:
    """Characters and values that a node stands for; ``found`` has those of nodes by their identity."""
    if id(node) not in found:
        found[id(node)] = math.inf  # of a node that holds itself
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        else:
            parts = node.value if isinstance(node, yaml.SequenceNode) else []
        own = 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
        found[id(node)] = own + sum(_written_out(part, found) for part in parts)
    return found[id(node)]
