"""Where recipes are, and which file a name means.

Gamut's own are in configs/STAGE of the clone, or inside the installed package. Folders in the environment variable
GAMUT_RECIPES (separated as in PATH), with the same layout, are searched as well. A name in two of them is an error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gamut.errors import RecipeError, nearest

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


@dataclass(frozen=True)
class Stage:
    """What recipes may be for: these lie in configs/NAME, have keys of their own in the schema (`stage=NAME`), and are
    carried out by the command of that name (`gamut.commands`)."""

    example: str
    check: str  # module:function, from a recipe to what contradicts itself in what it says of this stage
    work: str = ""  # module:class of the `gamut.train.main.Work` that ranks do; empty: not a training


STAGES = {
    "pretrain": Stage(
        "deepspeed --num_gpus 2 pretrain/run.py asit_tiny data=data/esc10 optim.lr=3e-4",
        "gamut.recipe.check_stages:pretraining",
        "pretrain.work:Pretrain",
    ),
    "finetune": Stage(
        "deepspeed --num_gpus 2 finetune/run.py esc50 init=runs/asit_b data=data/esc50",
        "gamut.recipe.check_stages:finetuning",
        "finetune.work:Finetune",
    ),
    "features": Stage(
        "python -m gamut.features extract whisper_large_as20k init=models/whisper-large",
        "gamut.recipe.check_stages:extracting",
    ),
}


def list_recipes(stage: str, configs: Path = CONFIGS) -> list[str]:
    """The names of a stage's recipes, sorted."""
    check_stage(stage)
    return list_names(stage, configs)


def list_names(kind: str, configs: Path = CONFIGS) -> list[str]:
    """The names of a kind of file: a stage's recipes, or `clusters`. Those in subfolders come last."""
    found = {name_of(kind, path, configs) for root in _roots(configs) for path in (root / kind).rglob("*.yaml")}
    return sorted(found, key=lambda name: (name.count("/"), name))


def name_of(kind: str, path: Path, configs: Path = CONFIGS) -> str:
    """The name of a recipe: its path below a folder of its kind, or elsewhere its file name, without `.yaml`."""
    resolved = path.resolve()
    for root in _roots(configs):
        folder = (root / kind).resolve()
        if resolved.is_relative_to(folder):
            return resolved.relative_to(folder).with_suffix("").as_posix()
    return path.stem


def named(kind: str, name: str, configs: Path = CONFIGS) -> Path | None:
    """The file of this kind and name; None where there is none. Raises RecipeError naming both where there are two."""
    paths = [path for root in _roots(configs) if (path := root / kind / f"{name}.yaml").is_file()]
    if len(paths) > 1:
        raise RecipeError(
            f"{name!r} could be {show(paths[0])} or {show(paths[1])}: rename one of them, or give a path instead."
        )
    return paths[0] if paths else None


def find_recipe(stage: str, name: str, configs: Path = CONFIGS, asked_by: Path | None = None) -> Path:
    """The file of the recipe with this name or path.

    asked_by: the recipe that lists it in its `defaults`; files beside that are tried first. Raises RecipeError where
    there is none, or more than one.
    """
    check_stage(stage)
    sibling = asked_by.parent / f"{name}.yaml" if asked_by else None
    if sibling is not None and sibling != asked_by and sibling.is_file():
        return sibling
    if (found := named(stage, name, configs)) is not None:
        return found
    by = f" (needed by {show(asked_by)})" if asked_by else ""
    if name.endswith((".yaml", ".yml")) or ("/" in name and Path(name).is_file()):
        for path in ([asked_by.parent / name] if asked_by else []) + [Path(name)]:
            if path.is_file():
                return path
        raise RecipeError(f"There is no recipe file {name}{by}.")
    known = list_recipes(stage, configs)
    for other in STAGES:
        if other != stage and named(other, name, configs) is not None:
            typed_as = f"extract {name}" if other == "features" else name
            raise RecipeError(
                f"{name!r} is a {other} recipe, not a {stage} one{by}: gamut {other} {typed_as} ... takes it. "
                f"{stage} recipes are {', '.join(known) or 'none'}."
            )
    places = ", ".join(show(root / stage) for root in _roots(configs))
    raise RecipeError(
        f"There is no {stage} recipe called {name!r}{by}{nearest(name, known)}. "
        f"There are: {', '.join(known) or 'none'} (in {places})."
    )


def _roots(configs: Path) -> list[Path]:
    """`configs`, then the folders of GAMUT_RECIPES. Raises RecipeError for one that is missing."""
    roots = {configs.resolve(): configs}
    for text in os.environ.get("GAMUT_RECIPES", "").split(os.pathsep):
        folder = Path(text).expanduser()
        if text and not folder.is_dir():
            raise RecipeError(f"The environment variable GAMUT_RECIPES names the folder {text}, which does not exist.")
        if text:
            roots.setdefault(folder.resolve(), folder)
    return list(roots.values())


def show(path: Path) -> str:
    """A path as one would type it: relative if it is below the working folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def check_stage(stage: str) -> None:
    """Raises RecipeError for an unknown stage."""
    if stage not in STAGES:
        *most, last = STAGES
        raise RecipeError(f"There is no stage called {stage!r}; the stages are {', '.join(most)} and {last}.")
