"""Public encoders of spectrograms give here what they give in the packages of their publishers, or in modules put
together after their papers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gamut.audio.logmel import patches
from gamut.errors import CheckpointError, RecipeError
from gamut.models.backbone import Backbone, build
from gamut.models.public import PublicEncoder, load_public
from gamut.models.vit import VisionTransformer
from gamut.models.weights import load_backbone
from gamut.recipe import schema
from tests.close import assert_close
from tests.models import public_files as files
from tests.models.public_files import FILES

WITHIN = 1e-4  # of what another library's log-mel and attention give


@pytest.fixture(scope="module")
def waveform() -> torch.Tensor:
    """int16 [2, 13 s]: a chord that swells, with an offset; clicks in next to silence."""
    generator = torch.Generator().manual_seed(1)
    t = torch.arange(13 * 16_000) / 16_000
    noise = torch.randn(len(t), generator=generator)
    chord = (torch.sin(440 * 6.28 * t) + torch.sin(3000 * 6.28 * t)) * 0.03 * (1 + t) + 0.01 * noise + 0.05
    clicks = noise * 1e-3
    clicks[::7_000] = 0.5
    return (torch.stack([chord, clicks]) * 32768).clamp(-32768, 32767).to(torch.int16)


def encoded(encoder: PublicEncoder, waveform: torch.Tensor) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    length = torch.full((len(waveform),), waveform.shape[1])
    encoder(encoder.log_mel(waveform, length), lambda block, x: found.append(x))
    return found


@pytest.mark.parametrize("seconds", [0.3, 5.0, 13.0])
def test_beats(tmp_path: Path, waveform: torch.Tensor, seconds: float) -> None:
    theirs = files.beats()
    mine = load_public(files.beats_file(tmp_path, theirs))
    clips = waveform[:, : int(16_000 * seconds)]
    found = encoded(mine, clips)
    assert (mine.kind, mine.depth, mine.dim, len(found)) == ("beats", files.DEPTH, files.DIM, files.DEPTH)
    for clip, own in zip(clips, zip(*found)):
        for got, expected in zip(own, files.beats_blocks(theirs, clip / 32768.0), strict=True):
            assert_close(got, expected.unflatten(0, (-1, 8)).mean(1), WITHIN)


@pytest.mark.parametrize("seconds", [0.3, 10.0, 13.0])
def test_dasheng(tmp_path: Path, waveform: torch.Tensor, seconds: float) -> None:
    theirs = files.dasheng_model()
    mine = load_public(files.dasheng_file(tmp_path, theirs))
    clips = waveform[:, : int(16_000 * seconds)]
    found = encoded(mine, clips)
    for clip, own in zip(clips, zip(*found)):
        for got, expected in zip(own, files.dasheng_blocks(theirs, clip / 32768.0), strict=True):
            assert_close(got, expected, WITHIN)


@pytest.mark.parametrize("seconds", [0.3, 10.0, 13.0])
def test_audiomae(tmp_path: Path, waveform: torch.Tensor, seconds: float) -> None:
    theirs = files.vit((1024, 128))
    mine = load_public(files.audiomae_file(tmp_path, theirs))
    clips = waveform[:, : int(16_000 * seconds)]
    steps = -(-((clips.shape[1] - 400) // 160 + 1) // 16)
    found = encoded(mine, clips)
    for clip, own in zip(clips, zip(*found)):
        mel = files.ast_mel(clip / 32768.0, -4.2677393, 4.5689974)
        empty = torch.full((-len(mel) % 1024, 128), 4.2677393 / (2 * 4.5689974))
        pieces = [files.vit_blocks(theirs, piece) for piece in torch.cat([mel, empty]).split(1024)]
        for got, expected in zip(own, zip(*pieces), strict=True):
            assert_close(got, torch.cat(expected).unflatten(0, (-1, 8)).mean(1)[:steps], WITHIN)


@pytest.mark.parametrize(
    ("of", "seconds"), [(files.eat_of_fairseq, 0.3), (files.eat_of_transformers, 10.0), (files.eat_of_fairseq, 13.0)]
)
def test_eat(tmp_path: Path, waveform: torch.Tensor, of: Callable[..., Path], seconds: float) -> None:
    theirs = files.Eat()
    mine = load_public(of(tmp_path, theirs))
    clips = waveform[:, : int(16_000 * seconds)]
    steps = -(-((clips.shape[1] - 400) // 160 + 1) // 16)
    found = encoded(mine, clips)
    for clip, own in zip(clips, zip(*found)):
        mel = files.ast_mel(clip / 32768.0, -4.268, 4.569)
        seen = files.blocks_of(list(theirs.blocks), lambda mel=mel: theirs(mel))
        for got, expected in zip(own, seen, strict=True):
            assert_close(got, expected[0, 1:].unflatten(0, (-1, 8)).mean(1)[:steps], WITHIN)


@pytest.mark.parametrize(("seconds", "statistics"), [(0.3, None), (6.07, (-6.5, 3.9)), (13.0, None)])
def test_m2d(tmp_path: Path, waveform: torch.Tensor, seconds: float, statistics: tuple[float, float] | None) -> None:
    theirs = files.vit((80, 608))
    mine = load_public(files.m2d_file(tmp_path, theirs, statistics))
    clips = waveform[:, : int(16_000 * seconds)]
    found = encoded(mine, clips)
    assert mine.dim == 5 * files.DIM
    for clip, own in zip(clips, zip(*found)):
        mel = files.m2d_mel(clip / 32768.0, *(statistics or (-7.1, 4.2)))
        pieces = []
        for piece in torch.nn.functional.pad(mel, (0, -mel.shape[1] % 16)).split(608, 1):
            short = files.vit((80, piece.shape[1]))  # the same random weights, and the first columns of the positions
            table = theirs.pos_embed[:, 1:].unflatten(1, (5, 38))[:, :, : piece.shape[1] // 16].flatten(1, 2)
            state = theirs.state_dict() | {"pos_embed": torch.cat([theirs.pos_embed[:, :1], table], 1)}
            short.load_state_dict(state)
            pieces.append([x.unflatten(0, (5, -1)).transpose(0, 1).flatten(1) for x in files.vit_blocks(short, piece)])
        for got, expected in zip(own, zip(*pieces), strict=True):
            assert_close(got, torch.cat(expected), WITHIN)


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each."""
    return {kind: make(tmp_path_factory.mktemp(kind)) for kind, make in FILES.items()}


@pytest.mark.parametrize("kind", FILES)
def test_a_clip_alone_is_the_clip_in_a_batch(public: dict[str, Path], waveform: torch.Tensor, kind: str) -> None:
    mine = load_public(public[kind])
    clips = waveform[:, :40_000].clone()
    clips[1] //= 8
    together = encoded(mine, clips)
    for number in range(2):
        for got, expected in zip(together, encoded(mine, clips[number : number + 1])):
            assert_close(got[number], expected[0], 1e-5)


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_lacks_a_tensor_says_which(public: dict[str, Path], tmp_path: Path, kind: str) -> None:
    saved = torch.load(public[kind], weights_only=False)
    lost = [name for name in saved["model"] if ".1." in name and name.endswith(("mlp.fc2.bias", ".fc2.bias"))]
    assert len(lost) == 1
    del saved["model"][lost[0]]
    torch.save(saved, tmp_path / "less.pt")
    with pytest.raises(CheckpointError, match=r"less\.pt has no tensor model\.blocks\.1\.mlp\.fc2\.bias"):
        load_public(tmp_path / "less.pt")


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_cut_off_is_named(public: dict[str, Path], tmp_path: Path, kind: str) -> None:
    (tmp_path / "half.pt").write_bytes(public[kind].read_bytes()[:200_000])
    with pytest.raises(CheckpointError, match=r"The checkpoint file .*half\.pt"):
        load_public(tmp_path / "half.pt")


def test_no_code_of_a_config_is_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    Trap.__module__ = "fairseq.config"
    path = files.eat_of_fairseq(tmp_path, files.Eat())
    saved = torch.load(path, weights_only=False)
    torch.save({**saved, "task": Trap()}, path)
    with pytest.raises(CheckpointError, match="EAT-base"):
        load_public(path)
    assert not (tmp_path / "ran").exists()


def test_positions_that_are_no_sines_do_not_go_on(tmp_path: Path, waveform: torch.Tensor) -> None:
    path = files.eat_of_transformers(tmp_path, files.Eat())
    state = load_file(path / "model.safetensors")
    state["model.fixed_positional_encoder.positions"] += 0.1
    save_file(state, path / "model.safetensors")
    mine = load_public(path)
    assert len(encoded(mine, waveform[:, :160_000])) == files.DEPTH
    with pytest.raises(CheckpointError, match=r"none for more than 1024 frames: set extract\.seconds to 10\.24"):
        encoded(mine, waveform)


def test_beats_of_espnet_and_audiomae_with_its_classifier(tmp_path: Path, waveform: torch.Tensor) -> None:
    """ESPnet's fine-tuned BEATs lie under `encoder.` and say nothing of themselves; a classifier of AudioMAE has the
    norm behind its pooling."""
    clips = waveform[:, :40_000]
    theirs = files.beats()
    whole = {f"encoder.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save(whole | {"decoder.linear_out.weight": torch.zeros(50, files.DIM)}, tmp_path / "espnet.pth")
    plain = load_public(files.beats_file(tmp_path, theirs))
    assert_close(encoded(load_public(tmp_path / "espnet.pth"), clips)[-1], encoded(plain, clips)[-1], 1e-6)
    vit = files.vit((1024, 128))
    state = {name.replace("norm.", "fc_norm.", 1) if name.startswith("norm.") else name: tensor
             for name, tensor in vit.state_dict().items()}  # fmt: skip
    save_file(state | {"head.weight": torch.zeros(50, files.DIM)}, tmp_path / "tuned.safetensors")
    plain = load_public(files.audiomae_file(tmp_path, vit))
    assert_close(encoded(load_public(tmp_path / "tuned.safetensors"), clips)[-1], encoded(plain, clips)[-1], 1e-6)


def test_another_size_of_beats_is_a_sentence(public: dict[str, Path], tmp_path: Path) -> None:
    saved = torch.load(public["beats"], weights_only=True)
    saved["cfg"]["max_distance"] = 1280
    torch.save(saved, tmp_path / "far.pt")
    with pytest.raises(CheckpointError, match=r"BEATs with max_distance = 1280; only 800"):
        load_public(tmp_path / "far.pt")


def test_weights_of_something_else_are_none_of_them(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"none of EAT or SSLAM, AudioMAE, BEATs, Dasheng, M2D"):
        load_public(tmp_path / "other.pt")


# As the start of our own ---------------------------------------------------------------------------------------------

OURS = schema.Model(dim=files.DIM, depth=files.DEPTH, heads=files.HEADS, table_frames=1024, drop_path=0.0)


def tokens(backbone: Backbone, mels: list[torch.Tensor]) -> list[torch.Tensor]:
    """[patches, dim] of each of several log-mels [frames, 128], all in one pack."""
    sizes = tuple(len(mel) for mel in mels)
    where = backbone.layout(torch.tensor(sizes), sizes)
    with torch.no_grad():
        found = backbone.eval()(patches(torch.cat(mels)), where)
    return list(found[where.patch].split([len(mel) // 2 for mel in mels]))


@pytest.fixture(scope="module")
def mels() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(length, 128, generator=generator) for length in (1024, 16, 48, 48)]


def test_eat_as_init(tmp_path: Path, mels: list[torch.Tensor]) -> None:
    """Of any length in one pack, as it is alone in its paper's model."""
    theirs = files.Eat()
    vit = VisionTransformer(dataclasses.replace(OURS, norm="post"))
    assert load_backbone(vit, files.eat_of_fairseq(tmp_path, theirs)).prefix == "model."
    for mel, got in zip(mels, tokens(vit, mels)):
        with torch.no_grad():
            assert_close(got, theirs(mel)[0, 1:], 1e-5)


def test_audiomae_as_init(tmp_path: Path, mels: list[torch.Tensor]) -> None:
    theirs = files.vit((1024, 128))
    vit = VisionTransformer(OURS)
    loaded = load_backbone(vit, files.audiomae_file(tmp_path, theirs))
    assert (loaded.resized, loaded.fresh) == ((), ())
    with torch.no_grad():
        assert_close(tokens(vit, mels)[0], theirs.forward_features(mels[0][None, None])[0, 1:], 1e-5)


def test_m2d_as_init_has_its_kernel_turned_and_its_positions_stretched(tmp_path: Path) -> None:
    theirs = files.vit((80, 608))
    vit = VisionTransformer(OURS)
    assert "positions of 38x5 to 64x8" in str(load_backbone(vit, files.m2d_file(tmp_path, theirs, None)))
    kernel = theirs.patch_embed.proj.weight[:, 0].transpose(1, 2).flatten(1)
    assert torch.equal(vit.patch_embed.proj.weight, kernel)
    grid = theirs.pos_embed[0, 1:].unflatten(0, (5, 38)).permute(2, 1, 0)[None]
    stretched = torch.nn.functional.interpolate(grid, (64, 8), mode="bilinear", align_corners=False)[0]
    assert_close(vit.pos_embed[0, 1:].unflatten(0, (64, 8)), stretched.permute(1, 2, 0))


def test_beats_as_init(tmp_path: Path, mels: list[torch.Tensor]) -> None:
    theirs = files.beats()
    model = dataclasses.replace(OURS, backbone="beats", pooling="mean")
    mine = build(model)
    load_backbone(mine, files.beats_file(tmp_path, theirs))
    for mel, got in zip(mels, tokens(mine, mels)):
        raw = mel * 2 * 6.55582 + 15.41663
        with torch.no_grad():
            expected, _, _ = theirs(raw[None], torch.tensor([len(mel)]), waveform_input=False)
        assert_close(got, expected[0], 1e-4)


def test_beats_learns_and_drops_branches_of_a_clip_whatever_its_company(mels: list[torch.Tensor]) -> None:
    model = dataclasses.replace(OURS, backbone="beats", pooling="mean", drop_path=0.5)
    mine, keys = build(model, seed=1).train(), torch.tensor([5, 6, 7])

    def run(chosen: list[int]) -> torch.Tensor:
        clips = [mels[1:][number] for number in chosen]
        sizes = tuple(len(mel) for mel in clips)
        where = mine.layout(torch.tensor(sizes), sizes)
        return mine.pool(mine(patches(torch.cat(clips)), where, keys[chosen]), where)

    together = run([0, 1, 2])
    for number in range(3):
        assert_close(together[number], run([number])[0], 1e-5)
    together.square().sum().backward()
    assert all(parameter.grad is not None for parameter in mine.parameters())


def test_what_does_not_fit_as_init_is_a_sentence(public: dict[str, Path]) -> None:
    for kind, said in (
        ("eat", r"EAT or SSLAM, whose norms come after each sum: set model\.norm=post"),
        ("beats", r"BEATs, which has relative positions: set model\.backbone=beats and model\.pooling=mean"),
        ("dasheng", r"has patches of 4x64, this model's are 16x16"),
    ):
        with pytest.raises(CheckpointError, match=said):
            load_backbone(VisionTransformer(OURS), public[kind])
    with pytest.raises(RecipeError, match=r"set model\.pooling=mean"):
        build(dataclasses.replace(OURS, backbone="beats"))
