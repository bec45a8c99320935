"""YAML as configs have it: no key is there twice, 010 is ten, and what its aliases stand for is bounded."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML in which no key hides another, and 010 is ten, as in YAML 1.2."""

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


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


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
