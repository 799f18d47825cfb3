"""Our own backbones and speech models behind the same face as Whisper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from gamut.audio.logmel import cut, log_mel, normalise, patches
from gamut.data.assemble import assemble
from gamut.data.front import spectrogram
from gamut.data.reader import Reader
from gamut.errors import GamutError
from gamut.features.encoders import OfSpectrograms, digest, load_encoder
from gamut.features.extract import prepare, run
from gamut.models.layout import layout
from gamut.models.public import load_public
from gamut.models.speech import load_speech
from gamut.models.vit import VisionTransformer
from gamut.models.weights import save_weights
from gamut.plan import plan_evaluation
from gamut.recipe import schema
from gamut.recipe.resolved import resolved_yaml
from gamut.recipe.schema import Recipe
from gamut.shards import Index
from tests.close import apart, assert_close
from tests.features.conftest import changed, opened
from tests.models.public_files import FILES
from tests.models.test_speech import SIZES, STABLE


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: make(tmp_path_factory.mktemp(kind)) for kind, make in FILES.items()}


MODEL = schema.Model(dim=32, depth=2, heads=2, table_frames=192, drop_path=0.2)


@pytest.fixture(params=["cls", "attention", "mean"])
def asit_run(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A run folder with a teacher in it."""
    model = replace(MODEL, pooling=request.param, pooling_heads=2)
    vit = VisionTransformer(model, seed=3)
    folder = tmp_path / "run"
    checkpoint = folder / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    state = {f"teacher.backbone.{name}": tensor for name, tensor in vit.state_dict().items()}
    save_weights(checkpoint / "objective.safetensors", state, {})
    (folder / "checkpoints" / "latest").write_text(checkpoint.name)
    told = Recipe(model=model, front=schema.FrontEnd(mean=-5.0, std=4.0), step=schema.Step(clips=2))
    told = replace(told, run=schema.Run(name="run"), views=schema.Views(count=2, frames=192))
    (folder / "recipe.yaml").write_text(resolved_yaml(told))
    return folder


def test_a_pretrained_asit_by_its_run_folder(recipe: Recipe, asit_run: Path) -> None:
    recipe = changed(replace(recipe, init=str(asit_run), subset={"per_class": 1}), pool=4)
    job = prepare(recipe)
    cache = run(job, job.begin())
    assert (cache.info.layers, cache.info.steps, cache.info.dim) == (2, 3, 32)  # 198 frames of 2 s: 12 columns
    model = replace(MODEL, pooling=job.encoder._vit.model.pooling, pooling_heads=2)  # type: ignore[attr-defined]
    vit, reader = VisionTransformer(model, seed=3).eval(), Reader(opened(recipe))
    got = cache.read(cache.rows)
    for row, features in zip(cache.rows.tolist(), got):
        clip = torch.from_numpy(reader.decode(row)[: 191 * 160 + 400].copy())
        frames, one = torch.tensor([192]), torch.tensor([160])
        mel = log_mel(clip, torch.tensor([0, len(clip)]), torch.tensor([len(clip)]), one, frames, (192,))
        where = layout(frames, (192,), vit.class_token)
        with torch.no_grad():
            x = vit._embed(patches(normalise(mel, -5.0, 4.0)), where)
            for layer, block in enumerate(vit.blocks):
                x = block(x, where, None)
                columns = x[where.patch].view(12, 8, 32).mean(1)
                assert_close(features[layer], columns.view(3, 4, 32).mean(1), 1e-5)


def test_overlapping_patches_are_columns_of_as_many_rows_as_they_have(esc10: Path) -> None:
    model = replace(MODEL, stride=10, distilled=True)
    vit = VisionTransformer(model, seed=3)
    encoder = OfSpectrograms(vit, schema.FrontEnd(mean=-5.0, std=4.0), 160, 2.0, "fp32", torch.device("cpu"))
    index = Index.open(esc10)
    epoch = plan_evaluation(index.table(), encoder.policy(2))
    batch = assemble(index, epoch, [0])
    found: list[torch.Tensor] = []
    encoder(batch, lambda number, x: found.append(x))
    mel = normalise(spectrogram(batch, "fast"), -5.0, 4.0)
    where = vit.layout(batch.frames, batch.sizes)
    with torch.no_grad():
        x = vit._embed(cut(mel, batch.frames, batch.sizes, 10), where)
        for block, got in zip(vit.blocks, found, strict=True):
            x = block(x, where, None)
            assert got.shape == (2, 18, 32)  # of 192 frames, 12 rows each
            assert_close(got, x[where.patch].view(2, 18, 12, 32).mean(2), 1e-5)
    assert encoder.front["stride"] == 10


def test_the_same_weights_without_their_run(recipe: Recipe, asit_run: Path, tmp_path: Path) -> None:
    weights = tmp_path / "teacher.safetensors"
    weights.write_bytes((asit_run / "checkpoints" / "step-00000001" / "objective.safetensors").read_bytes())
    told = prepare(replace(recipe, init=str(asit_run)))
    model = told.encoder._vit.model  # type: ignore[attr-defined]
    alone = replace(recipe, init=str(weights), model=model, front=schema.FrontEnd(mean=-5.0, std=4.0))
    assert prepare(alone).about.fingerprint == told.about.fingerprint


def test_a_speech_model_by_its_folder(recipe: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(0)
    Wav2Vec2Model(Wav2Vec2Config(**SIZES, **STABLE)).save_pretrained(tmp_path / "model")
    recipe = changed(replace(recipe, init=str(tmp_path / "model"), subset={"per_class": 1}), seconds=5.2, pool=20)
    job = prepare(recipe)
    cache = run(job, job.begin())
    mine, reader = load_speech(tmp_path / "model"), Reader(opened(recipe))
    assert (cache.info.layers, cache.info.steps) == (3, 13)  # 259 steps: the last bin has 19
    row = int(cache.rows[0])
    clip, own = torch.zeros(1, 83_200), torch.from_numpy(reader.decode(row)[:83_200] / 32768)
    clip[0, : len(own)] = own
    found: list[torch.Tensor] = []
    mine(mine.prepare(clip, torch.tensor([len(own)])), lambda block, x: found.append(x[0]))
    got = cache.read([row])[0]
    for layer, x in enumerate(found):
        assert len(x) == 259
        assert_close(got[layer, 12], x[240:].mean(0), 1e-5)
        assert_close(got[layer, :12], x[:240].view(12, 20, -1).mean(1), 1e-5)


@pytest.mark.parametrize("kind", FILES)
def test_public_encoders_by_their_files(recipe: Recipe, public: dict[str, Path], kind: str) -> None:
    recipe = changed(replace(recipe, init=str(public[kind]), subset={"per_class": 1}), seconds=2.5, pool=1)
    job = prepare(recipe)
    cache = run(job, job.begin())
    mine, reader = load_public(public[kind]), Reader(opened(recipe))
    row, found = int(cache.rows[3]), []
    clip, own = torch.zeros(1, 40_000, dtype=torch.int16), torch.from_numpy(reader.decode(row)[:40_000].copy())
    clip[0, : len(own)] = own
    mine(mine.log_mel(clip, torch.tensor([len(own)])), lambda block, x: found.append(x[0]))
    steps = {"dasheng": 62, "beats": 15}.get(kind, 16)  # of 248 frames; 251, and the last column whole, in M2D
    assert (cache.info.layers, cache.info.steps, cache.info.dim) == (len(found), steps, mine.dim)
    assert_close(cache.read([row])[0], torch.stack(found), 1e-5)
    assert cache.info.model["kind"] == kind


@pytest.mark.parametrize("kind", FILES)
def test_public_encoders_in_half_precision(public: dict[str, Path], recipe: Recipe, kind: str) -> None:
    recipe = changed(replace(recipe, init=str(public[kind]), subset={"per_class": 1}), seconds=2.5, pool=1)
    index = opened(recipe)
    found = {}
    for precision in ("fp32", "bf16"):
        encoder = load_encoder(replace(recipe, precision=precision), torch.device("cpu"))
        batch = assemble(index, plan_evaluation(index.table(), encoder.policy(2)), [0])
        blocks: list[torch.Tensor] = []
        encoder(batch, lambda number, x, blocks=blocks: blocks.append(x.float()))
        found[precision] = torch.stack(blocks)
    assert 0 < apart(found["bf16"], found["fp32"]) < 0.05


def test_a_recipe_that_normalises_means_its_own_log_mel(recipe: Recipe, public: dict[str, Path]) -> None:
    model = schema.Model(dim=128, depth=2, heads=2, table_frames=1024)
    told = replace(recipe, init=str(public["audiomae"]), model=model, front=schema.FrontEnd(mean=-4.3, std=4.6))
    assert prepare(told).about.front["kind"] == "log-mel"


def test_weights_that_are_no_encoder_are_a_sentence(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(GamutError, match="there is no such file or folder"):
        prepare(replace(recipe, init=str(tmp_path / "nothing")))


def test_a_digest_is_of_names_shapes_and_bytes() -> None:
    one = torch.nn.Linear(3, 4)
    before = digest(one)
    assert digest(one) == before
    with torch.no_grad():
        one.weight[0, 0] += 1e-6
    assert digest(one) != before
