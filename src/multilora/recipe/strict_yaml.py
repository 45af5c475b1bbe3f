"""Read YAML strictly: keys that appear twice are errors, and so is YAML that expands to an enormous value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

# Far above any recipe. Aliases of aliases (`*a`) expand exponentially, so what is counted is the expanded value.
MAX_VALUES = 200_000
MAX_DEPTH = 50


class _StrictLoader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, Any], yaml.Mark] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            first = seen.setdefault((key.tag, key.value), key.start_mark)
            if first is not key.start_mark:
                raise yaml.YAMLError(
                    f"line {key.start_mark.line + 1}: the key {key.value!r} is already set in line {first.line + 1}; "
                    "keep one of them"
                )
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_VALUES:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: its merge keys (<<) expand without end")


def parse_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        ValueError: not valid YAML, a repeated key, or a value that is too large; says what is wrong, and where.
    """
    try:
        value = yaml.load(text, _StrictLoader)  # a SafeLoader
    except RecursionError:
        raise ValueError(f"it is nested too deeply; expected at most {MAX_DEPTH} levels") from None
    except Exception as error:  # for some broken scalars, PyYAML raises KeyError, AttributeError, ...
        message = " ".join(str(error).split()).replace('"<unicode string>", ', "")
        known = isinstance(error, yaml.YAMLError | ValueError)
        raise ValueError(message if known else f"a broken value ({message})") from None
    problem = size_problem(value)
    if problem:
        raise ValueError(problem)
    return value


def size_problem(value: Any) -> str | None:
    """What is wrong with the size of a nested value, or None. Values that contain themselves are too deep."""
    count = 0
    waiting = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH:
            return f"it is nested too deeply; expected at most {MAX_DEPTH} levels"
        if count > MAX_VALUES:
            return f"it expands to more than {MAX_VALUES:,} values; replace its aliases by the values they refer to"
        if isinstance(item, Mapping):
            waiting += [(child, depth + 1) for child in item.values()]
        elif isinstance(item, list | tuple | set):
            waiting += [(child, depth + 1) for child in item]
    return None
