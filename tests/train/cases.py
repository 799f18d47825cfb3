"""What ranks do in these tests; in a module of its own, so that a rank can import it."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from deepspeed import comm
from toy import Toy, ToyLoader, ToyPlans, teach, toy_recipe

from gamut import files
from gamut.errors import GamutError, RunError
from gamut.preemption import SIGNALS
from gamut.recipe import schema
from gamut.track.checkpoints import remove_leftovers
from gamut.train import checkpoint, loop, summing, zero
from gamut.train.checkpoint import Keeper
from gamut.train.objective import Moment
from gamut.train.partitions import whole_state
from gamut.train.restore import newest_verified
from gamut.train.session import lease
from gamut.train.step import Outcome, Stepper
from gamut.train.summing import Summing
from gamut.train.world import World
from tests.volatile import Volatile


def staged(engine: int | str, **changes: object) -> schema.Recipe:
    """The toy recipe with a ZeRO stage, or with an engine of that name. At stage 3 every parameter is cut."""
    if isinstance(engine, str):
        return toy_recipe(engine=engine, **changes)
    zero: dict[str, object] = {"stage": engine}
    if engine == 3:
        zero["stage3_param_persistence_threshold"] = 0
    return toy_recipe(deepspeed={"zero_optimization": zero}, **changes)


ENGINES: tuple[tuple[int | str, str], ...] = (
    (0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), ("oss", "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16"),
)  # fmt: skip


def split_recipe(engine: int | str, per_forward: int, packs: int, **changes: Any) -> schema.Recipe:
    """The toy recipe for an engine, with so many packs a step, and so many of them in a forward."""
    recipe = staged(
        engine,
        checkpoint=schema.Checkpoint(every_epochs=0.0, every_minutes=1e9),
        step=schema.Step(packs=packs, clips=2),
        **changes,
    )
    return replace(recipe, loader=replace(recipe.loader, packs_per_forward=per_forward))


def every_engine(world: World, folder: Path, per_forward: int, packs: int) -> dict[str, dict]:
    """The toy run with each engine, in fp32 and where the weights are kept in it in bf16."""
    answers = {}
    for engine, precision in ENGINES:
        recipe = split_recipe(engine, per_forward, packs, precision=precision)
        name = f"{engine}-{precision}"
        answers[name] = teach(world, folder / name, recipe, Toy(), plans=ToyPlans(packs=packs))
    return answers


def with_adam(world: World, folder: Path, epochs: int) -> dict[str, dict]:
    """The toy run with Adam in the place of AdamW, on the engines that make an optimiser in ways of their own."""
    return {
        str(engine): teach(world, folder / str(engine), adam_recipe(engine, epochs), Toy(), plans=ToyPlans(packs=4))
        for engine in (1, 3, "oss")
    }


def adam_recipe(engine: int | str, epochs: int) -> schema.Recipe:
    """Adam, a weight decay that shows, and a rate that falls by gamma."""
    optim = replace(toy_recipe().optim, name="adam", clip=0.0, weight_decay=0.3, weight_decay_end=0.3)
    optim = replace(optim, schedule="gamma", gamma=0.5, gamma_from=1, warmup_steps=2)
    return split_recipe(engine, 4, 4, epochs=epochs, optim=optim)


def unclipped(epochs: int) -> dict[str, Any]:
    """What makes the toy recipe a run of so many epochs without clipping, whose factor is rounded in several ways."""
    return {"epochs": epochs, "optim": replace(toy_recipe().optim, clip=0.0)}


def with_gradients(
    world: World, folder: Path, per_forward: int, packs: int, epochs: int, wanted: str = "fp32", sent: str = ""
) -> dict[str, dict]:
    """The toy run with each engine in that precision, without clipping, and the gradients of every step.

    sent: the type in which gradients are summed over ranks, where it is not the usual one.
    """
    answers = {}
    reduce = Stepper._reduce
    for engine, precision in ENGINES:
        if precision != wanted:
            continue
        gradients: list[dict] = []

        def look(self: Stepper, *arguments: Any, noted: list[dict] = gradients) -> Any:
            """After the last backward and before the update."""
            noted.append({name: gradient(p).numpy().copy() for name, p in self.engine.model.named_parameters()})
            return reduce(self, *arguments)

        Stepper._reduce = look
        recipe = split_recipe(engine, per_forward, packs, precision=precision, **unclipped(epochs))
        if sent:
            recipe = replace(recipe, deepspeed=recipe.deepspeed | {"communication_data_type": sent})
        name = f"{engine}-{precision}"
        answer = teach(world, folder / name, recipe, Toy(), plans=ToyPlans(packs=packs))
        answers[name] = answer | {"gradients": gradients}
    return answers


def summed(world: World, folder: Path, recipe: schema.Recipe, packs: int) -> dict:
    """The toy run in bf16 with DeepSpeed's own sums over ranks, with ours, and with ours in buckets of a parameter or
    two; how many buckets each run sent, and how many of them before its backward had ended."""
    answers, send, size = {}, Summing._send, summing.BUCKET
    for name, beside, bucket in (("after", False, size), ("beside", True, size), ("small", True, 20)):
        early: list[int] = []
        sent: list[int] = []

        def noted(self: Summing, all_of_them: bool, early: list[int] = early, sent: list[int] = sent) -> None:
            if all_of_them:
                early.append(len(self._sent or []))
            send(self, all_of_them)
            if all_of_them:
                sent.append(len(self._sent or []))

        Summing._send, summing.BUCKET = noted, bucket
        zero.sums_beside = lambda config, recipe, beside=beside: beside
        answers[name] = teach(world, folder / name, recipe, Toy(), plans=ToyPlans(packs=packs))
        answers[name] |= {"early": early, "sent": sent}
    return answers


def gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    """A parameter's whole gradient, wherever its engine keeps it."""
    if hasattr(parameter, "ds_id"):
        return parameter._z3_optimizer.get_fp32_grad_for_param(parameter)
    if hasattr(parameter, "_hp_mapping"):
        return parameter.get_full_hp_grad()
    assert parameter.grad is not None
    return parameter.grad


def killed(world: World, folder: Path, recipe: schema.Recipe, step: int, rank: int, when: str) -> dict:
    """Train until `rank` kills itself: in `step`'s preparation, or after its update and before anything is saved."""
    objective = Toy()

    def die(now: int) -> None:
        if now == step and world.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)

    if when == "prepare":
        objective.before_step = die
    else:
        after = objective.after_step
        objective.after_step = lambda at: (after(at), die(at.step))[0]
    return teach(world, folder, recipe, objective)


def saved_then(world: World, folder: Path, recipe: schema.Recipe, steps: int, fault: str) -> str:
    """Train `steps` steps with good checkpoints, then resume and meet a fault while saving; what was said."""
    teach(world, folder, recipe, stop_after=steps)

    def hook(action: str, path: Path) -> None:
        if fault == "full" and world.rank == world.size - 1 and action == "write" and "rank-" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        if fault == "engine full" and world.rank == world.size - 1 and action == "write" and path.suffix == ".pt":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        if fault == "manifest" and action == "fsync" and path.name == "manifest.json":
            raise OSError(errno.EROFS, "Read-only file system", str(path))

    files.hook = hook
    try:
        teach(world, folder, recipe)
    except GamutError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def while_writing(
    world: World, folder: Path, recipe: schema.Recipe, name: str, until: int, seconds: float, die: int | None = None
) -> dict:
    """The toy run in which every file of checkpoint `name` takes `seconds` to write, or until step `until` begins.

    `latest` is what that names then, on disk. There rank `die` kills itself.
    """
    begun, objective, latest = threading.Event(), Toy(), folder / "checkpoints" / "latest"
    named: list[str] = []

    def look(step: int) -> None:
        if step != until or begun.is_set():
            return
        if world.rank == die:
            os.kill(os.getpid(), signal.SIGKILL)
        named.append(latest.read_text().strip() if latest.exists() else "")
        begun.set()

    def hook(action: str, path: Path) -> None:
        if action == "write" and path.parent.name.endswith(name):
            assert threading.current_thread() is not threading.main_thread()
            begun.wait(seconds)

    objective.before_step = look
    files.hook = hook
    return teach(world, folder, recipe, objective) | {"latest": named}


class Dying:
    """A hook that ends the process at the given call. Of a file's many writes the first two count."""

    def __init__(self, point: int, note: Path) -> None:
        self.left = point
        self.note = note
        self.writes: Counter[Path] = Counter()

    def __call__(self, action: str, path: Path) -> None:
        self.writes[path] += action == "write"
        if action == "write" and self.writes[path] > 2:
            return
        if self.left == 0:
            self.note.write_text(f"{action} {path.name}")
            os._exit(9)
        self.left -= 1


def crash_points(world: World, folder: Path, recipe: schema.Recipe, steps: int) -> list[tuple[str, str, str]]:
    """Save a second checkpoint again and again, dying at its every write, fsync and rename.

    [(where it died, the checkpoint that loads afterwards, what `latest` names)], the last one without a death.
    """
    made: list[Keeper] = []

    class Noted(Keeper):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            made.append(self)

    loop.Keeper = Noted
    state = teach(world, folder, recipe, stop_after=steps)["state"]
    keeper = made[0]
    # A forked child has no threads of the process group; with one rank there is nothing to wait for.
    comm.barrier = lambda *_, **__: None
    keeper.engine.module._checkpoint_tag_validation = lambda tag: None
    keeper.newest = None
    checkpoints = folder / "checkpoints"
    died_at = folder / "died"
    answers = []
    for point in itertools.count():
        place = folder / f"crash-{point}"
        shutil.copytree(checkpoints, place)
        died_at.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            files.hook = Dying(point, died_at)
            keeper.folder = place
            keeper.save(replace(state, step=state.step + 2))
            keeper.finish()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        remove_leftovers(place)
        path, _ = newest_verified(place)
        answers.append((died_at.read_text() if status else "", path.name, (place / "latest").read_text().strip()))
        assert not [p.name for p in place.iterdir() if p.name.startswith(".")]
        shutil.rmtree(place)
        if not status:
            return answers


def refused(world: World, folder: Path, recipe: schema.Recipe, plans: ToyPlans | None = None) -> tuple[str, str]:
    """(kind, message) of the error that keeps this recipe from going on in `folder`."""
    try:
        teach(world, folder, recipe, **({"plans": plans} if plans else {}))
    except GamutError as error:
        return type(error).__name__, str(error)
    return "", ""


def attempts(world: World, folder: Path, recipe: schema.Recipe) -> tuple[list[dict], list[int]]:
    """Attempts stopped after 2, 4, ... 20 steps of the run, then one that is not; and the epochs that ended."""
    ends: list[int] = []
    answers = [
        teach(world, folder, recipe, stop_after=steps, at_epoch_end=lambda epoch, at: ends.append(epoch))
        for steps in [*range(2, 21, 2), None]
    ]
    return answers, ends


def partly(world: World, folder: Path, recipe: schema.Recipe) -> str:
    """The first seven steps of the toy run."""
    return teach(world, folder, recipe, stop_after=7)["status"]


def poisoned(world: World, folder: Path, recipe: schema.Recipe, what: str, steps: list[int]) -> dict | str:
    """The toy run with a loss ("loss", on rank 0 only) or gradients ("gradient") that are not finite in `steps`."""
    objective = Toy()
    setattr(objective, {"loss": "poison", "gradient": "poison_gradient"}[what], set(steps))
    before: dict[int, dict[str, bytes]] = {}

    def look(step: int) -> None:
        state = whole_state(objective.model) | objective.extra_state()
        before.setdefault(step, {name: tensor.detach().float().numpy().tobytes() for name, tensor in state.items()})

    objective.before_step = look
    try:
        answer = teach(world, folder, recipe, objective)
    except RunError as error:
        return str(error)
    return answer | {"before": before}


def without(world: World, folder: Path, recipe: schema.Recipe, steps: list[int]) -> dict:
    """The toy run whose engine is never asked to do these steps: they are left out before the first forward."""
    take = Stepper.take

    def leave_out(self, batches, at, lr, decay, asks, waited, *early):
        if at.step not in steps:
            return take(self, batches, at, lr, decay, asks, waited, *early)
        clips = int(world.sum(torch.tensor([float(sum(b.clips for b in batches))]))[0])
        return Outcome(False, clips, 0, asks, 0.0, {}, [True] * len(batches))

    Stepper.take = leave_out
    return teach(world, folder, recipe)


def holed(world: World, folder: Path, recipe: schema.Recipe, rows: list[int]) -> dict | str:
    """The toy run where some rows cannot be used."""
    ToyLoader.holes = frozenset(rows)
    try:
        return teach(world, folder, recipe)
    except RunError as error:
        return str(error)


def ended_while_writing(world: World, folder: Path, recipe: schema.Recipe, name: str, how: str) -> str:
    """The toy run that ends by `how` (holes, divergence) while checkpoint `name` is being written; what was said."""
    ends = threading.Event()

    def ending(run: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            try:
                return run(*arguments)
            except RunError:
                ends.set()
                raise

        return wrapped

    def hook(action: str, path: Path) -> None:
        if action == "write" and path.parent.name.endswith(name):
            ends.wait(60.0)

    files.hook = hook
    loop.Holes.add = ending(loop.Holes.add)
    loop.compare_replicas = ending(loop.compare_replicas)
    if how == "holes":
        return str(holed(world, folder, recipe, list(range(0, 34, 3))))
    return diverging(world, folder, recipe, "model", 6)


def signalled(world: World, folder: Path, recipe: schema.Recipe, step: int, rank: int, number: int) -> dict:
    """The toy run in which a rank gets a signal during a step. Handlers of before are back afterwards."""
    objective = Toy()
    told: list[int] = []

    def tell(now: int) -> None:
        if now == step and world.rank == rank and not told:
            told.append(now)
            os.kill(os.getpid(), number)

    objective.before_step = tell
    handlers = [signal.getsignal(n) for n in SIGNALS]
    answer = teach(world, folder, recipe, objective)
    assert [signal.getsignal(n) for n in SIGNALS] == handlers
    return answer


def without_power(world: World, folder: Path, recipe: schema.Recipe) -> tuple[str, str]:
    """(the checkpoint that loads, what `latest` says) where the power goes as soon as four steps are saved."""
    (folder / "checkpoints").mkdir(parents=True)
    disk = Volatile()
    teach(world, folder, recipe, stop_after=4)
    disk.cut(folder / "checkpoints")
    return newest_verified(folder / "checkpoints")[0].name, (folder / "checkpoints" / "latest").read_text()


def drawing(world: World, folder: Path, recipe: schema.Recipe, seed: int, steps: int | None) -> dict[int, float]:
    """What each step of the toy run, up to so many, draws from torch's generator of this rank."""
    torch.manual_seed(seed + world.rank)
    objective, drawn = Toy(), {}
    objective.before_step = lambda step: drawn.setdefault(step, torch.rand(1).item())
    teach(world, folder, recipe, objective, stop_after=steps)
    return drawn


def on_a_small_disk(world: World, folder: Path, recipe: schema.Recipe, left: int) -> tuple[list[str], dict]:
    """The toy run on a file system of its own, which something else fills up to so many bytes after four steps: what
    two attempts said of it, and how the run ended once there was room again."""
    system = ctypes.CDLL(None, use_errno=True)
    folder.mkdir(parents=True)
    private, slave, recursive = 0x20000, 1 << 19, 1 << 14  # unshare's CLONE_NEWNS; mount's MS_SLAVE and MS_REC
    assert system.unshare(private) == 0, os.strerror(ctypes.get_errno())
    assert system.mount(b"none", b"/", None, slave | recursive, None) == 0
    assert system.mount(b"none", bytes(folder), b"tmpfs", 0, b"size=1m") == 0
    teach(world, folder, recipe, stop_after=4)
    (folder / "ballast").write_bytes(bytes(shutil.disk_usage(folder).free - left))
    said = []
    for _ in range(2):
        try:
            teach(world, folder, recipe)
        except GamutError as error:
            said.append(f"{type(error).__name__}: {error}")
    assert newest_verified(folder / "checkpoints")[0].name == "step-00000004"
    assert (folder / "checkpoints" / "latest").read_text() == "step-00000004\n"
    (folder / "ballast").unlink()
    return said, teach(world, folder, recipe)


def hanging(world: World, folder: Path, recipe: schema.Recipe, rank: int, where: str) -> dict:
    """The toy run in which a rank stops moving: in its third step, where the first epoch ends, in the plan of the
    second, or where its first checkpoint is copied, written or published."""
    objective, plans = Toy(), ToyPlans()

    def hang(here: str, when: bool = True) -> None:
        if here == where and when and world.rank == rank:
            time.sleep(1000)

    def hook(action: str, path: Path) -> None:
        hang("writing", action == "fsync" and path.name.startswith("objective"))
        hang("publishing", action == "rename" and path.name.startswith("step-"))

    take, copy = plans.take, Keeper._take_own
    plans.take = lambda number, *block: (hang("planning", number == 1), take(number, *block))[1]
    Keeper._take_own = lambda self, *given: (hang("copying"), copy(self, *given))[1]
    objective.before_step = lambda step: hang("step", step == 2)
    files.hook = hook
    return teach(world, folder, recipe, objective, plans=plans, at_epoch_end=lambda epoch, at: hang("end"))


def slow(world: World, folder: Path, recipe: schema.Recipe, seconds: float) -> dict:
    """The toy run in which each file of a checkpoint takes so many seconds."""
    files.hook = lambda action, path: time.sleep(seconds) if action == "fsync" and path.is_file() else None
    return teach(world, folder, recipe)


def holding(world: World, folder: Path, until: Path) -> str:
    """Hold a run folder until a file is there."""
    with lease(folder, world):
        (folder / "held").touch()
        while not until.exists():
            time.sleep(0.02)
    return "held"


def wanting(world: World, folder: Path) -> str:
    """Try to hold a run folder."""
    try:
        with lease(folder, world):
            return "held"
    except RunError as error:
        return str(error)


def teach_short(world: World, folder: Path, recipe: schema.Recipe) -> list[int]:
    """The toy run in epochs of one step: after which steps it was saved."""
    return teach(world, folder, recipe, plans=ToyPlans(steps=1))["saved"]


def timed(world: World, folder: Path, recipe: schema.Recipe) -> list[int]:
    """The toy run where a step takes a minute by the clock of rank 0, and a day by any other: when it was saved."""
    objective, passed = Toy(), [0.0]
    minutes = 1.0 if world.first else 1440.0
    objective.before_step = lambda step: passed.append(60.0 * minutes * (step + 1))
    checkpoint.time = SimpleNamespace(monotonic=lambda: passed[-1])
    return teach(world, folder, recipe, objective)["saved"]


def stopped(world: World, folder: Path, recipe: schema.Recipe, steps: int | None) -> dict:
    """The toy run up to a step."""
    return teach(world, folder, recipe, stop_after=steps)


def spiking(world: World, folder: Path, recipe: schema.Recipe, steps: list[int], attempts: int) -> list[dict | str]:
    """Attempts at the toy run whose loss spikes in these steps wherever they are trained on; how each ended."""
    ends: list[dict | str] = []
    for _ in range(attempts):
        objective = Toy()
        objective.spikes = set(steps)
        try:
            ends.append(teach(world, folder, recipe, objective))
        except RunError as error:
            ends.append(str(error))
    return ends


def diverging(world: World, folder: Path, recipe: schema.Recipe, part: str, step: int) -> str:
    """The toy run in which one bit of a tensor of rank 1 turns over after a step; what was said."""
    objective = Toy()
    after = objective.after_step

    def turn(at: Moment) -> dict[str, float]:
        values = after(at)
        if at.step == step and world.rank == 1:
            module = {"model": objective.model, "teacher": objective.teacher}[part]
            module.norm.weight.data.view(torch.int32)[3] ^= 1
        return values

    objective.after_step = turn
    try:
        return teach(world, folder, recipe, objective)["status"]
    except RunError as error:
        return str(error)


def copied_slowly(world: World, folder: Path, recipe: schema.Recipe, second: Path) -> dict:
    """The toy run whose first copy of a checkpoint does not get on before the last step is taken; what was there then
    of copies."""
    objective, done = Toy(), threading.Event()
    there: list[str] = []

    def hook(action: str, path: Path) -> None:
        if action == "write" and path.is_relative_to(second):
            assert threading.current_thread() is not threading.main_thread()
            done.wait(60.0)

    def look(step: int) -> None:
        if step == 19:
            there.extend(path.name for path in second.glob("run/checkpoints/step-*"))
            done.set()

    files.hook = hook
    objective.before_step = look
    return teach(world, folder, recipe, objective) | {"copies while it trained": there}
