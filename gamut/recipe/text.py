"""Reading YAML as people write it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from gamut.errors import RecipeError

MOST_VALUES = 100_000  # of a text
DEEPEST = 100  # brackets in each other


class _Yaml(yaml.SafeLoader):
    """YAML as people write it: `1e-3` is a number, only true and false are booleans, no key may occur twice."""

    def fetch_flow_collection_start(self, kind: type[yaml.Token]) -> None:
        """PyYAML looks at every open bracket again at each character: deep ones are refused as they come."""
        if self.flow_level == DEEPEST:
            raise RecursionError
        super().fetch_flow_collection_start(kind)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key must be one word, not a list or a mapping", problem_mark=key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key_node.value} is given twice", problem_mark=node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp", ":int"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF"))
_Yaml.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|nan))$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, place: str) -> Any:
    """The value of a YAML text. Raises RecipeError naming `place` and the line."""
    try:
        loader = _Yaml(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if (values := _values(node, {})) > MOST_VALUES:
            raise ValueError(f"it stands for {values:,} values, of which at most {MOST_VALUES:,} are read")
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        said = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise RecipeError(f"{place} is not valid YAML{line}: {said}.") from None
    except RecursionError:
        raise RecipeError(f"{place} is not valid YAML: it is nested too deep.") from None


def _values(node: yaml.Node, seen: dict[int, int]) -> int:
    """How many values a node stands for once what it refers to (`*name`) is written out; `seen` are those counted."""
    if id(node) not in seen:
        seen[id(node)] = MOST_VALUES + 1  # for one that holds itself
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        flat = (one for part in parts for one in (part if isinstance(part, tuple) else (part,)))
        seen[id(node)] = 1 + sum(_values(one, seen) for one in flat)
    return seen[id(node)]
