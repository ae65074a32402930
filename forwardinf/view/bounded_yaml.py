"""YAML that somebody gave, read within bounds: its size, its depth, and what its aliases stand for written out."""

from __future__ import annotations

from typing import Any

import yaml

MOST_BYTES = 2**20
MOST_DEPTH = 32
MOST_NODES = 100_000


def load(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ValueError: It is larger or deeper than a configuration can be, or no YAML.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"{len(text):,} characters, more than {MOST_BYTES:,}")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEPTH:
                raise ValueError(f"values nested more than {MOST_DEPTH} deep")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and _written_out(node, {}) > MOST_NODES:
            raise ValueError(f"aliases that stand for more than {MOST_NODES:,} values")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for, each alias counted as all that it names."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = MOST_NODES + 1  # one that holds itself has no end
    inside = [] if isinstance(node, yaml.ScalarNode) else node.value
    parts = [part for one in inside for part in (one if isinstance(one, tuple) else (one,))]
    known[id(node)] = 1 + sum(_written_out(part, known) for part in parts)
    return known[id(node)]
