"""Every key of a recipe, as a document: `python -m gamut.recipe.reference > docs/recipes.md`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

import yaml

from gamut.recipe.load import ONLY
from gamut.recipe.names import RENAMED, describe, hints
from gamut.recipe.schema import Recipe
from gamut.settings import About, about

HEAD = """# Every key of a recipe

Written by `python -m gamut.recipe.reference > docs/recipes.md` from the schema (`gamut/recipe/schema.py`, `stages.py`):
change it there. A recipe is YAML, with `defaults: NAME` to inherit another; on the command line a key is
`optim.lr=3e-4`. `null` stands for no value. *May change*: whether a run may go on with another value (see
[training.md](training.md#checkpoints-and-engines)); all else decides its numbers, and another value is refused.
"""


def reference() -> str:
    """The document, in Markdown."""
    sections: dict[str, type] = {}
    lines = [HEAD, "## At the top\n", *_table(Recipe, "", sections)]
    for name, cls in sections.items():
        stage = f" For `{ONLY[name]}` recipes." if name in ONLY else ""
        lines += [f"\n## `{name}`\n", " ".join((cls.__doc__ or "").split()) + stage + "\n"]
        lines += _table(cls, f"{name}.", {}, about(Recipe)[name].may_change is True)
    free = about(Recipe)["deepspeed"].may_change
    lines += ["\n## What of `deepspeed` may change\n"]
    lines += [", ".join(f"`{entry}`" for entry in cast(tuple[str, ...], free)) + "."]
    if RENAMED:
        lines += ["\n## Renamed\n", "Recipes may still say the earlier name, with a warning.\n"]
        lines += ["| earlier | now |", "| --- | --- |", *(f"| `{old}` | `{new}` |" for old, new in RENAMED.items())]
    return "\n".join(lines) + "\n"


def _table(cls: type, prefix: str, sections: dict[str, type], all_may_change: bool = False) -> Iterator[str]:
    """A row a key; fields that are sections themselves are put into `sections`."""
    yield "| key | type | default | meaning | may change |"
    yield "| --- | --- | --- | --- | --- |"
    for f in dataclasses.fields(cls):
        hint, known = hints(cls)[f.name], about(cls)[f.name]
        if dataclasses.is_dataclass(hint):
            sections[f.name] = cast(type, hint)
            continue
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        free = "yes" if all_may_change or known.may_change is True else "in part" if known.may_change else ""
        meaning = known.meaning + (f" (`{known.stage}` recipes)" if known.stage else "")
        yield f"| `{prefix}{f.name}` | {_kind(hint, known)} | `{_typed(default)}` | {meaning} | {free} |"


def _kind(hint: Any, known: About) -> str:
    """`a whole number, at least 1 (frames)`."""
    words = describe(hint).removeprefix("a ")
    words = ", ".join(known.bounds.names or filter(None, (words, str(known.bounds))))
    return f"{words} ({known.unit})" if known.unit else words


def _typed(value: Any) -> str:
    """A value as it stands in YAML."""
    if value == "":
        return "''"
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return text.removesuffix("\n...\n").strip()


if __name__ == "__main__":
    print(reference(), end="")
