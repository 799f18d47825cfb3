"""Steps of recipes on stand-in clips, as they train: by DeepSpeed where it is here, else by plain AdamW."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import nn

from bench.gpu.parts import LeftOut, Row, Setting
from bench.gpu.published import PublishedAsit, PublishedElastic
from gamut.audio.logmel import log_mel
from gamut.commands import ROOT
from gamut.data.batch import PackedBatch
from gamut.estimate.rates import Rates
from gamut.estimate.step import objective_of
from gamut.estimate.work import work_of
from gamut.recipe import schema
from gamut.recipe.load import load_recipe
from gamut.threads import one_thread
from gamut.train.engine import Engine, Unsaved, adam, adam_options
from gamut.train.objective import Moment, Objective
from gamut.train.step import Asks, Stepper
from gamut.train.world import World, make_deterministic

DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
EAGER = ("compute.compile=false",)
COMPILED = ("compute.compile=true",)


@dataclass(frozen=True)
class Case:
    """A recipe, with other values of its keys."""

    stage: str
    name: str
    words: tuple[str, ...] = ()

    def also(self, *words: str) -> Case:
        return replace(self, words=(*self.words, *words))

    def recipe(self, setting: Setting) -> schema.Recipe:
        return load_recipe(self.stage, self.name, self.typed(setting))

    def typed(self, setting: Setting) -> list[str]:
        """The recipe's keys that are given."""
        plain = ["engine=oss"] if setting.gpu and not DEEPSPEED else []  # fp32 weights under autocast, as `Plain`
        return ["data=nowhere", *self.words, *plain]

    def of_packs(self, packs: int) -> Case:
        """All packs of a step in one forward."""
        return self.also(f"step.packs={packs}", f"loader.packs_per_forward={packs}")


class Plain(Unsaved):
    """AdamW on one device, forwards under autocast: what stands in where there is no DeepSpeed."""

    def __init__(self, objective: Objective, recipe: schema.Recipe, world: World) -> None:
        super().__init__(objective, recipe, world)
        self.limit = recipe.optim.clip
        self.optimizer = adam(recipe.optim)(self.groups, lr=0.0, **adam_options(recipe.optim))

    @contextlib.contextmanager
    def micro_step(self, last: bool) -> Iterator[nn.Module]:
        yield self.model

    def backward(self, share: torch.Tensor) -> None:
        share.backward()

    def _gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]

    @torch.no_grad()
    def gradient_square(self) -> torch.Tensor:
        norms = torch._foreach_norm(self._gradients())
        return torch.stack(norms).double().square().sum()

    @torch.no_grad()
    def apply(self) -> None:
        if self.limit:
            gradients = self._gradients()
            norm = torch.stack(torch._foreach_norm(gradients)).square().sum().sqrt()
            torch._foreach_mul_(gradients, (self.limit / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.step()
        self.drop()

    def drop(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)


class Trainer:
    """A case that is ready to take steps."""

    def __init__(self, case: Case, setting: Setting) -> None:
        self.recipe = recipe = case.recipe(setting)
        work = work_of(recipe, 1)
        self.tokens, self.clips = work.tokens, work.clips
        self.batch = work.batch()
        if setting.gpu:
            self.batch = pinned(self.batch)
        make_deterministic(recipe.run.deterministic or not setting.gpu)
        torch.manual_seed(0)
        world = World(0, 1, 0, 1, setting.device, torch.get_num_threads())
        if setting.gpu and DEEPSPEED:
            from gamut.train.loop import make_engine
            from gamut.train.world import start

            world = start(recipe.run)
        self.objective = objective_of(recipe, work, setting.device)
        self.objective.model.train()
        if setting.gpu and DEEPSPEED:
            engine: Engine = make_engine(self.objective, recipe, world, 1)
        else:
            self._compile(setting)
            engine = Plain(self.objective, recipe, world)
        self.stepper = Stepper(self.objective, engine, world)
        self.at = Moment(recipe.epochs // 2, 0, 0, 0.5)

    def _compile(self, setting: Setting) -> None:
        if self.recipe.compute.compiles(setting.device.type):
            from gamut.train.blocks import prepare

            copies = [block for module in self.objective.copies() for block in self.objective.blocks(module)]
            said = prepare(self.objective.blocks(self.objective.model), copies, self.recipe.compute, setting.device)
            if said and self.recipe.compute.compile is True:
                raise LeftOut(said)

    def step(self) -> float:
        """The loss of one more step."""
        outcome = self.stepper.take([self.batch], self.at, 1e-5, 0.04, Asks(), 0.0)
        assert outcome.applied, "a loss or a gradient was not finite"
        return outcome.values["loss"]


def pinned(batch: PackedBatch) -> PackedBatch:
    """As the loader gives it where there is a GPU."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{name: x.pin_memory() for name, x in values.items() if isinstance(x, torch.Tensor)})


def loss_of(case: Case, setting: Setting, steps: int = 1) -> float:
    """Of the last of a few steps from the recipe's own beginning."""
    trainer = Trainer(case.of_packs(1).also(*EAGER), setting)
    return [trainer.step() for _ in range(steps)][-1]


def small(setting: Setting) -> tuple[Case, Case]:
    """A pretraining and a training of a size at which a step is looked at for what it computes."""
    asit, elastic = Case("pretrain", "asit_tiny"), Case("finetune", "elastic_tiny")
    if setting.tiny:
        return asit.also("model.depth=1", "step.clips=2", "asit.prototypes=64"), elastic.also("model.depth=1")
    return asit, elastic


def cases(setting: Setting) -> dict[str, Case]:
    """Steps that are timed, by what they are called."""
    if setting.tiny:
        asit, elastic = small(setting)
        return {"ASiT tiny, 1 pack": asit.of_packs(1), "ElasticAST tiny, 1 pack": elastic.of_packs(1)}
    found = {}
    for title, case, sizes in (
        ("ASiT B", Case("pretrain", "asit_b"), (1, 8, 32)),
        ("ASiT S", Case("pretrain", "asit_s"), (32,)),
        ("ElasticAST B", Case("finetune", "elastic_audioset", ("augment.mixup=0.5",)), (12, 64, 256)),
    ):
        for packs in sizes:
            base = case.of_packs(packs)
            found[f"{title}, {packs} packs, eager"] = base.also(*EAGER)
        found[f"{title}, {sizes[-1]} packs, compiled"] = base.also(*COMPILED)
        found[f"{title}, {sizes[-1]} packs, eager, deterministic"] = base.also(*EAGER, "run.deterministic=true")
    return found


class Forecasts:
    """The account's clips/s and GB of each case, made by processes of their own, in which there is no GPU."""

    def __init__(self, setting: Setting, rates: Rates | None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="gamut-forecasts-"))
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._known: dict[str, dict[str, float]] = {}
        if rates is None:
            return
        file = self._folder / "rates.json"
        file.write_text(rates.to_json())
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "PYTHONPATH": path}
        hidden |= {"OMP_NUM_THREADS": "1"}
        for name, case in cases(setting).items():
            told = [case.stage, case.name, *case.typed(setting)]
            line = [sys.executable, "-m", "bench.gpu.forecast", str(file), *told]
            self._running[name] = subprocess.Popen(
                line, env=hidden, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )

    def wait(self, seconds: float) -> None:
        """Take what has come, and end the others after so long."""
        for name, process in self._running.items():
            try:
                said, _ = process.communicate(timeout=seconds)
                if process.returncode == 0:
                    self._known[name] = json.loads(said.splitlines()[-1])
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        self._running = {}

    def of(self, name: str, what: str) -> float | None:
        return self._known.get(name, {}).get(what)


def timed(setting: Setting, forecasts: Forecasts) -> Iterator[Row]:
    """Clips/s and peak memory of each case, and its forecast beside it."""
    forecasts.wait(120)
    left: list[str] = []
    for name, case in cases(setting).items():
        try:
            setting.require_time(30, name)
            if setting.gpu:
                gc.collect()  # engines hold on to themselves
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            trainer = Trainer(case, setting)
            seconds = setting.seconds(trainer.step, repeats=8)
        except (LeftOut, torch.OutOfMemoryError) as error:
            left.append(f"{name} ({str(error).splitlines()[0]})")
            continue
        engine = type(trainer.stepper.engine).__name__
        rate = trainer.clips / seconds
        yield Row(f"{name}", rate, "clips/s", trainer.tokens, forecasts.of(name, "clips"), f"engine {engine}")
        if setting.gpu:
            peak = torch.cuda.max_memory_allocated() / 1e9
            yield Row(f"{name}", peak, "GB", trainer.tokens, forecasts.of(name, "gigabytes"))
        del trainer
    make_deterministic(not setting.gpu)
    if left:
        raise LeftOut("; ".join(left))


def published(setting: Setting) -> Iterator[Row]:
    """The published way (bench/gpu/published.py), of the same clips; its log-mel, on one core, apart."""
    dim, depth, heads, clips = (96, 1, 3, 2) if setting.tiny else (768, 12, 12, 40)
    frames = 192 if setting.tiny else 592
    with one_thread():
        waveforms, seconds = _noise(2 * clips, frames), 0.0
        mels: list[torch.Tensor] = []

        def front() -> None:
            mels[:] = [_mel(waveform, frames) for waveform in waveforms]

        seconds = replace(setting, device=torch.device("cpu"), tiny=True).seconds(front)
    yield Row("published ASiT, log-mel of two views, one core", clips / seconds, "clips/s")
    asit = PublishedAsit(dim, depth, heads, frames, 64 if setting.tiny else 8192, setting.device)
    batch = torch.stack(mels)
    seconds = setting.seconds(lambda: asit.step(batch), repeats=5)
    tokens = 2 * clips * (frames // 2 + 1)
    yield Row("published ASiT, step without log-mel", clips / seconds, "clips/s", tokens, note=f"{clips} clips")
    clips = 3 if setting.tiny else 48
    shifts = [10 + 2 * (number % 16) for number in range(clips)]  # ms: C = 1.0, 1.2 ... 4.0
    lengths = [max(16, frames * 10 // shift // 16 * 16) for shift in shifts]
    if not setting.tiny:
        lengths = [max(16, 998 * 10 // shift // 16 * 16) for shift in shifts]
    elastic = PublishedElastic(dim, depth, heads, 5 if setting.tiny else 527, setting.device)
    ragged = [torch.randn(length, 128) for length in lengths]
    targets = torch.zeros(clips, 5 if setting.tiny else 527)
    seconds = setting.seconds(lambda: elastic.step(ragged, targets), repeats=5)
    yield Row(
        "published ElasticAST, step without log-mel",
        clips / seconds,
        "clips/s",
        sum(lengths) // 2,
        note=f"{clips} clips",
    )


def _noise(clips: int, frames: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    samples = (frames - 1) * 160 + 400
    return [torch.randint(-999, 999, (samples,), generator=generator, dtype=torch.int16) for _ in range(clips)]


def _mel(waveform: torch.Tensor, frames: int) -> torch.Tensor:
    count = torch.tensor([len(waveform)])
    mel = log_mel(
        waveform, torch.tensor([0, len(waveform)]), count, torch.tensor([160]), torch.tensor([frames]), (frames,)
    )
    return (mel + 4.27) / 9.14
