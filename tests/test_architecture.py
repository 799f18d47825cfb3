"""What the source itself must keep to: arrows between the rooms, and calls that may stand in one place only."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = sorted(p for top in ("gamut", "pretrain", "finetune", "launchers") for p in (ROOT / top).rglob("*.py"))

# A room may import rooms on lower floors, and its own. (plan, audio, models, evaluate, track, recipe share a floor;
# what crosses it is named.)
FLOOR = {
    "gamut.errors": 0,
    "gamut.files": 0,
    "gamut.processes": 0,
    "gamut.text": 0,
    "gamut.threads": 0,
    "gamut.progress": 0,
    "gamut.commands": 1,
    "gamut.registry": 0,
    "gamut.randomness": 0,
    "gamut.numbers": 0,
    "gamut.settings": 0,
    "gamut.accelerator": 1,
    "gamut.compiler": 0,
    "gamut.preemption": 0,
    "gamut.watchdog": 0,
    "gamut.unpickle": 1,
    "gamut.remote": 1,
    "gamut.recipe": 2,
    "gamut.plan": 1,
    "gamut.audio": 1,
    "gamut.evaluate": 1,
    "gamut.models": 2,
    "gamut.track": 2,
    "gamut.shards": 3,
    "gamut.data": 4,
    "gamut.train": 5,
    "gamut.features": 6,
    "gamut.probe": 6,
    "gamut.tag": 6,
    "gamut.analyse": 7,
    "gamut.serve": 7,
    "gamut.estimate": 7,
    "gamut.runs": 7,
    "gamut.report": 7,
    "gamut.export": 7,
    "gamut.embed": 7,
    "gamut.benchmarks": 7,
    "pretrain": 8,
    "finetune": 8,
    "launchers": 9,
}
ALLOWED_ACROSS = {
    ("gamut.models", "gamut.recipe"),
    ("gamut.track", "gamut.recipe"),
    ("gamut.models", "gamut.track"),
    ("gamut.report", "gamut.runs"),
    ("gamut.report", "gamut.export"),
    ("gamut.registry", "gamut.errors"),
    ("gamut.files", "gamut.errors"),
    ("gamut.text", "gamut.errors"),
    ("gamut.settings", "gamut.registry"),
    ("gamut.benchmarks", "gamut.embed"),
}


def room(module: str) -> str | None:
    parts = module.split(".")
    name = ".".join(parts[:2]) if parts[0] == "gamut" else parts[0]
    return name if name in FLOOR else None


def imports(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.lineno, node.module))
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


@pytest.mark.parametrize("path", SOURCE, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_run_downward(path: Path) -> None:
    mine = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if mine is None:
        return
    wrong = []
    for line, module in imports(path):
        other = room(module)
        if other is None or other == mine or (mine, other) in ALLOWED_ACROSS:
            continue
        if FLOOR[other] >= FLOOR[mine]:
            wrong.append(f"line {line}: {mine} imports {module}")
    assert not wrong, wrong


def needed(path: Path, modules: set[str]) -> set[str]:
    """Those of `modules` that a file imports; `from room import module` needs the module, not what the room gives."""
    found = [module for _, module in imports(path)]
    return {one for one in found if one in modules} - {
        one for one, after in pairwise(found) if after in modules and after.rpartition(".")[0] == one
    }


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first once more at the end; [] where none do."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Neither at once nor late, within a function: what needs each other belongs together, or a third below both."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCE]
    graph = {name: needed(path, set(names)) for name, path in zip(names, SOURCE)}
    assert not circle(graph), " imports ".join(circle(graph))


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    found = circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})
    assert found in (["b", "c", "b"], ["c", "b", "c"])


# What the plan may import besides gamut: it is arrays in, arrays out. Who writes, maps and forks is gamut.data.
PURE = {"__future__", "collections", "dataclasses", "functools", "hashlib", "heapq", "itertools", "json", "numpy"}
PURE |= {"abc", "math", "typing"}
FILES = {"open", "save", "savez", "load", "memmap", "open_memmap", "fromfile", "tofile"}  # and NumPy's way round


def test_the_plan_is_arrays_in_arrays_out() -> None:
    for path in (ROOT / "gamut" / "plan").rglob("*.py"):
        assert not {m.split(".")[0] for _, m in imports(path)} - PURE - {"gamut"}, path
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [node.lineno for node in calls if called(node).split(".")[-1] in FILES], path


# call -> the files in which it may stand
ONE_PLACE = {
    "pickle.load": (),
    "pickle.loads": (),
    "torch.load": ("gamut/unpickle.py",),
    "extractall": (),
    "yaml.load": (),
    "os.system": (),
}


def called(node: ast.Call) -> str:
    parts: list[str] = []
    target: ast.expr = node.func
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    if isinstance(target, ast.Name):
        parts.append(target.id)
    return ".".join(reversed(parts))


@pytest.mark.parametrize("path", SOURCE, ids=lambda p: str(p.relative_to(ROOT)))
def test_dangerous_calls_stand_in_one_place(path: Path) -> None:
    wrong = []
    where = path.relative_to(ROOT).as_posix()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr == "Unpickler" and where != "launchers/task.py":
            wrong.append(f"line {node.lineno}: Unpickler")
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        for banned, places in ONE_PLACE.items():
            if (name == banned or name.endswith("." + banned)) and where not in places:
                wrong.append(f"line {node.lineno}: {name}")
        for keyword in node.keywords:
            true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            if keyword.arg in {"shell", "allow_pickle"} and true:
                wrong.append(f"line {node.lineno}: {name}({keyword.arg}=True)")
            if keyword.arg == "weights_only" and not true:
                wrong.append(f"line {node.lineno}: {name}(weights_only=...)")
    assert not wrong, wrong


SAID_ONCE = {"RATE": 16_000, "HOP": 160, "WINDOW": 400, "BINS": 128, "MELS": 128, "PATCH": 16, "EXIT_PREEMPTED": 75}


@pytest.mark.parametrize("path", SOURCE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_numbers_of_all_rooms_stand_in_one_place(path: Path) -> None:
    """Nobody but gamut/numbers.py gives them a name, writes 16 kHz, or reckons with the hop or the window in digits."""
    if path == ROOT / "gamut" / "numbers.py":
        return
    wrong = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and node.value == 16_000:
            wrong.append(f"line {node.lineno}: 16_000")
        elif isinstance(node, ast.BinOp):
            digits = {side.value for side in (node.left, node.right) if isinstance(side, ast.Constant)}
            wrong += [f"line {node.lineno}: {number}" for number in digits & {160, 400}]
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            again = [name for name in names & SAID_ONCE.keys() if SAID_ONCE[name] == node.value.value]
            wrong += [f"line {node.lineno}: {name}" for name in again]
    assert not wrong, f"{wrong}: import them from gamut.numbers"
