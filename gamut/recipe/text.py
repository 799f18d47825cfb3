"""Reading YAML as people write it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from gamut.errors import RecipeError


class _Yaml(yaml.SafeLoader):
    """YAML as people write it: `1e-3` is a number, only true and false are booleans, no key may occur twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
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
    loader = _Yaml(text)
    try:
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{place} is not valid YAML{line}: {getattr(error, 'problem', None) or error}.") from None
    finally:
        loader.dispose()
