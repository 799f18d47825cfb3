"""What stands around a step: evaluation, features, heads on cached features, the loader, a kill and a resume."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from bench.gpu.parts import LeftOut, Row, Setting
from bench.gpu.steps import Case, Trainer
from gamut.commands import ROOT
from gamut.models.backbone import build, sized
from gamut.plan import Clips, Policy, plan_epoch


def evaluation(setting: Setting) -> Iterator[Row]:
    """Logits of a recipe's packs, without what reads them."""
    case = Case("finetune", "elastic_tiny" if setting.tiny else "elastic_audioset", ("compute.compile=false",))
    trainer = Trainer(case.of_packs(1 if setting.tiny else 64), setting)
    classifier: object = trainer.objective
    seconds = setting.seconds(lambda: classifier.logits(trainer.batch).cpu())  # type: ignore[attr-defined]
    yield Row(f"evaluation, {case.name}", trainer.clips / seconds, "clips/s", trainer.tokens)


def features(setting: Setting) -> Iterator[Row]:
    """Outputs of all blocks of a ViT, and of Whisper's encoder where transformers is here, pooled to 25 steps."""
    from gamut.features.encoders import OfSpectrograms, OfWhisper
    from gamut.features.extract import encode, noise

    clips = 1 if setting.tiny else 64
    front = SimpleNamespace(mean=-4.27, std=4.57, mode="fast")
    precision = "bf16" if setting.gpu else "fp32"
    model = dataclasses.replace(sized("tiny"), depth=2) if setting.tiny else sized("b")
    encoders = {
        "ViT tiny" if setting.tiny else "ViT B": OfSpectrograms(
            build(model), front, 160, 10.0, precision, setting.device
        )
    }  # type: ignore[arg-type]
    if not setting.tiny:
        encoders["Whisper medium's shape"] = OfWhisper(_whisper(setting), 10.0, precision, setting.device)  # type: ignore[assignment]
    for name, encoder in encoders.items():
        batch = noise(encoder.policy(clips), clips)
        blocks = tuple(range(encoder.depth))
        seconds = setting.seconds(lambda e=encoder, b=batch, k=blocks: encode(e, b, k, 20).half().cpu(), repeats=5)  # type: ignore[misc]
        yield Row(f"features of 10 s, {name}", clips / seconds, "clips/s")


def _whisper(setting: Setting) -> torch.nn.Module:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from gamut.models.whisper import Whisper

    config = WhisperConfig(d_model=1024, encoder_layers=24, encoder_attention_heads=16, encoder_ffn_dim=4096)
    return Whisper(WhisperEncoder(config)).to(setting.device, torch.bfloat16)


def heads(setting: Setting) -> Iterator[Row]:
    """Steps of a head on features that are there."""
    name = "whisper_at_esc10" if setting.tiny else "whisper_at"
    case = Case("finetune", name, ("features=whisper_tiny",) if setting.tiny else ())
    trainer = Trainer(case.of_packs(1 if setting.tiny else 4), setting)  # eager: a head has no blocks
    yield Row(f"head, {name}, steps", trainer.clips / setting.seconds(trainer.step), "clips/s")


def feed(setting: Setting) -> Iterator[Row]:
    """Batches of cached features from the loader, verified: no sound is decoded."""
    from gamut.data.loader import Loader
    from gamut.features import write_cache

    clips, workers = (8, 0) if setting.tiny else (1024, 8)
    shape = (4, 25, 384) if setting.tiny else (32, 25, 1280)
    with tempfile.TemporaryDirectory() as name:
        x = np.random.default_rng(0).standard_normal((8, *shape), np.float32).astype(np.float16)
        cache = write_cache(Path(name) / "cache", np.concatenate([x] * (clips // 8)))
        ones = np.ones(clips, np.int64)
        table = Clips(np.arange(clips), cache.clip_id, 0 * ones, 16000 * ones, ones)
        epoch = plan_epoch(table, 0, 0, Policy(packs=4, clips=1 if setting.tiny else 12, cached=True))
        index = SimpleNamespace(label_ids=lambda row: np.zeros(1, np.int32))
        since, read = time.perf_counter(), 0
        for _, batches in Loader(index, epoch, rank=0, world=1, per_forward=4, workers=workers, features=cache):  # type: ignore[arg-type]
            read += sum(batch.bytes for batch in batches)
        seconds = time.perf_counter() - since
    yield Row(
        "loader, cached features",
        clips / seconds,
        "clips/s",
        note=f"{read / seconds / 1e9:.2f} GB/s, {workers} workers",
    )


def resume(setting: Setting) -> Iterator[Row]:
    """A training that is killed after a checkpoint and started again ends as one that was not, bit for bit."""
    for module in ("deepspeed", "webdataset", "soundfile"):
        try:
            __import__(module)
        except ImportError as error:
            raise LeftOut(f"{module} is not here") from error
    setting.require_time(150, "a kill and a resume")
    from launchers.corpus import synthesise

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthesise(folder / "corpus", 40, seconds=2.0)
        environment = os.environ | {"DS_ACCELERATOR": setting.device.type}
        convert = [
            sys.executable,
            "-m",
            "gamut.shards",
            "convert",
            "esc50",
            str(folder / "corpus"),
            str(folder / "shards"),
        ]
        subprocess.run(convert, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=120)

        def train(run: str) -> subprocess.Popen[bytes]:
            words = [
                f"data={folder}/shards",
                f"run.folder={folder}/{run}",
                "run.deterministic=true",
                "front.mean=-6",
                "front.std=5",
            ]
            words += ["epochs=8", "step.packs=2", "step.clips=4", "compute.compile=false"]
            words += [
                "probe.every_epochs=0",
                "track.picture_epochs=0",
                "track.mlflow=off",
                "views.frames=96",
                "model.depth=2",
                "asit.prototypes=64",
                "loader.workers=1",
            ]
            line = [sys.executable, "pretrain/run.py", "asit_tiny", *words]
            with (folder / f"{run}.log").open("ab") as log:
                return subprocess.Popen(line, cwd=ROOT, env=environment, stdout=log, stderr=log)

        def losses(run: str) -> dict[int, float]:
            found: dict[int, float] = {}
            for file in (folder / run).rglob("metrics.jsonl"):
                for line in map(json.loads, file.read_text().splitlines()):
                    if "loss" in line:
                        found[int(line["step"])] = float(line["loss"])
            return found

        whole = train("whole")
        assert whole.wait(200) == 0, (folder / "whole.log").read_text()[-2000:]
        killed = train("killed")
        deadline = time.monotonic() + 150
        while killed.poll() is None and not [*(folder / "killed").rglob("latest*")]:
            assert time.monotonic() < deadline, f"no checkpoint: {(folder / 'killed.log').read_text()[-500:]}"
            time.sleep(0.02)
        killed.kill()
        assert killed.wait(30) == -signal.SIGKILL, "the run ended before it could be killed"
        again = train("killed")
        assert again.wait(200) == 0, (folder / "killed.log").read_text()[-2000:]
        known, found = losses("whole"), losses("killed")
        assert known, "no losses were logged"
        assert {step: known[step] for step in found} == found, "the resumed run has other losses"
        assert max(known) == max(found), "the resumed run did not end"
        yield Row("killed and resumed, losses unlike the whole run's", 0, "steps", note=f"of {len(known)}")
