"""A recipe is what its files and the command line say, and every mistake in them is one sentence."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut.errors import RecipeError
from gamut.recipe.find import STAGES, list_recipes
from gamut.recipe.load import load_recipe
from gamut.recipe.names import ELSEWHERE, keys
from gamut.recipe.policy import evaluation_policy, training_policy
from gamut.recipe.resolved import decisive, differences, read_resolved, recipe_hash, resolved_yaml
from gamut.recipe.schema import Recipe

VALID = set(keys()) | {key.partition(".")[0] for key in keys()}
EVERY = [(stage, name) for stage in STAGES for name in list_recipes(stage)]


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A folder of recipes: base <- middle <- leaf, and a second base."""
    folder = tmp_path / "configs" / "pretrain"
    folder.mkdir(parents=True)
    texts = {
        "base": "epochs: 3\nstep: {packs: 4, clips: 2}\nviews: {count: 2, frames: 64}\noptim: {lr: 1e-3, clip: 1}",
        "other": "epochs: 5\nseed: 7",
        "middle": "defaults: base\noptim: {lr: 2e-3}",
        "leaf": "defaults: [middle, other]\noptim: {clip: 2.5}",
        "circle_a": "defaults: circle_b",
        "circle_b": "defaults: circle_a",
    }
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return tmp_path / "configs"


def refused(configs: Path, *overrides: str, name: str = "base") -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe("pretrain", name, overrides, configs)
    message = str(caught.value)
    assert message.endswith((".", ")"))
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("stage", "name"), EVERY)
def test_every_recipe_loads_and_survives_a_round_trip(stage: str, name: str, tmp_path: Path) -> None:
    recipe = load_recipe(stage, name)
    assert recipe.stage == stage
    assert recipe.run.name == name
    (tmp_path / "recipe.yaml").write_text(resolved_yaml(recipe))
    assert read_resolved(tmp_path / "recipe.yaml") == recipe


def test_recipes_are_there() -> None:
    assert {"asit", "asit_tiny", "asit_s", "asit_b", "demo"} <= set(list_recipes("pretrain"))
    assert {"esc50", "demo"} <= set(list_recipes("finetune"))


def test_the_papers_sizes() -> None:
    b, s = load_recipe("pretrain", "asit_b"), load_recipe("pretrain", "asit_s")
    assert (b.model.dim, b.model.depth, b.model.heads) == (768, 12, 12)
    assert (s.model.dim, s.model.depth, s.model.heads) == (384, 12, 6)
    for recipe in (b, s):
        assert recipe.step.packs * (recipe.step.clips or 0) == 160
        assert (recipe.views.count, recipe.views.frames, recipe.asit.prototypes) == (2, 592, 8192)
        assert recipe.optim.betas == (0.9, 0.999)


def test_inheritance_in_order_then_own_then_command_line(configs: Path) -> None:
    recipe = load_recipe("pretrain", "leaf", ["seed=9", "optim.betas=[0.8, 0.9]"], configs)
    assert recipe.epochs == 5  # of `other`, which comes after `middle`
    assert recipe.optim.lr == 2e-3  # of `middle`, over `base`
    assert recipe.optim.clip == 2.5  # its own
    assert recipe.seed == 9
    assert recipe.optim.betas == (0.8, 0.9)
    assert recipe.step.packs == 4
    assert recipe.run.name == "leaf"


def test_recipes_in_a_folder_are_named_with_it_and_see_their_siblings(configs: Path) -> None:
    folder = configs / "pretrain" / "table"
    folder.mkdir()
    (folder / "all.yaml").write_text("defaults: leaf\nseed: 3")
    (folder / "one.yaml").write_text("defaults: all\nasit: {weight_local: 0}")
    assert list_recipes("pretrain", configs)[-2:] == ["table/all", "table/one"]
    recipe = load_recipe("pretrain", "table/one", [], configs)
    assert (recipe.run.name, recipe.seed, recipe.asit.weight_local, recipe.optim.clip) == ("table/one", 3, 0.0, 2.5)
    assert "table/one" in refused(configs, name="table/on")


def test_attention_pooling_is_trained_by_the_global_loss_and_koleo_on_what_it_pools(configs: Path) -> None:
    without = ["model.pooling=attention", "asit.weight_global=0"]
    for rows in ([], ["asit.weight_koleo=0.1"]):
        message = refused(configs, *without, *rows)
        assert "model.pooling" in message
        assert "asit.weight_global" in message
    load_recipe("pretrain", "base", [*without, "asit.weight_koleo=0.1", "asit.koleo_on=pooled"], configs)
    for pooling in ("attention", "mean"):
        assert load_recipe("pretrain", "base", [f"model.pooling={pooling}"], configs).model.pooling == pooling


def test_a_path_is_a_recipe_too(configs: Path) -> None:
    assert load_recipe("pretrain", str(configs / "pretrain" / "leaf.yaml"), [], Path("nowhere")).optim.lr == 2e-3


def test_text_is_taken_as_typed(configs: Path) -> None:
    typed = ["track.mlflow=off", "init=007", "data=a: b", "run.name=1e3", "views.random=no"]
    recipe = load_recipe("pretrain", "base", typed, configs)
    assert (recipe.track.mlflow, recipe.init, recipe.data, recipe.run.name) == ("off", "007", "a: b", "1e3")
    assert recipe.views.random is False
    (configs / "pretrain" / "off.yaml").write_text("defaults: base\ntrack: {mlflow: off}")
    assert load_recipe("pretrain", "off", [], configs).track.mlflow == "off"


def test_mappings_merge_and_an_empty_one_clears(configs: Path) -> None:
    (configs / "pretrain" / "sub.yaml").write_text("defaults: base\nsubset: {fold: [1, 2]}")
    both = load_recipe("pretrain", "sub", ["subset.target=[5]", "deepspeed.zero_optimization.stage=2"], configs)
    assert both.subset == {"fold": [1, 2], "target": [5]}
    assert both.deepspeed == {"zero_optimization": {"stage": 2}}
    assert load_recipe("pretrain", "sub", ["subset={}"], configs).subset == {}
    named = load_recipe("pretrain", "sub", ["subset.split=[train, 3]"], configs)
    assert named.subset == {"fold": [1, 2], "split": ["train", 3]}


def test_environment(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    override = ["data=${oc.env:GAMUT_DATA,data}/set"]
    monkeypatch.delenv("GAMUT_DATA", raising=False)
    assert load_recipe("pretrain", "base", override, configs).data == "data/set"
    monkeypatch.setenv("GAMUT_DATA", "/far")
    assert load_recipe("pretrain", "base", override, configs).data == "/far/set"
    assert load_recipe("pretrain", "base", ["data=${oc.env:HOME}"], configs).data
    message = refused(configs, "data=${oc.env:GAMUT_NO_SUCH_NAME}/x")
    assert "data" in message
    assert "the environment has no GAMUT_NO_SUCH_NAME" in message


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "SLURM_JWT", "${oc.env:GAMUT_WHICH}"])
def test_a_variable_of_the_environment_that_may_be_a_secret_is_not_shown(
    configs: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("GAMUT_WHICH", "AWS_SECRET_ACCESS_KEY")
    for secret in ("AWS_SECRET_ACCESS_KEY", "SLURM_JWT"):
        monkeypatch.setenv(secret, "s3cret")
    for default in ("", ",none"):
        message = refused(configs, f"run.name=${{oc.env:{name}{default}}}")
        assert "is no variable that a recipe may show; it may show HOME" in message
        assert "s3cret" not in message


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("seed: 1\0", "special characters are not allowed"),
        ("[" * 20_000, "nested too deep"),
        ("seed: " + "{a: " * 5_000, "nested too deep"),
        (
            "\n".join(
                f"{'abcdefghi'[n]}: &{'abcdefghi'[n]} [{', '.join(['*' + 'zabcdefgh'[n]] * 9)}]" for n in range(9)
            ).replace("*z", "lol"),
            "stands for",
        ),
        ("seed: &a [*a]", "stands for"),
    ],
)
def test_a_bomb_is_one_sentence_at_once(configs: Path, text: str, what: str) -> None:
    path = configs / "pretrain" / "bomb.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(RecipeError, match=rf"bomb\.yaml is not valid YAML.*{what}"):
        load_recipe("pretrain", "bomb", [], configs)
    with pytest.raises(RecipeError, match="bomb"):
        read_resolved(path)
    assert time.process_time() - began < 5.0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lrr=1", ["optim.lrr", "command line", "optim.lr"]),
        ("lr=1", ["optim.lr", "command line"]),
        ("optim.learning_rate=1", ["optim.learning_rate", "it is called optim.lr here"]),
        ("batch_size=64", ["it is called step.clips here"]),
        ("optm.lr=1", ["optm", "optim"]),
        ("optim=3", ["optim", "section"]),
        ("optim.lr=fast", ["optim.lr", "a number", "'fast'"]),
        ("optim.betas=[1,x]", ["optim.betas", "a list of 2 numbers"]),
        ("epochs=1.5", ["epochs", "a whole number"]),
        ("epochs=true", ["epochs", "a whole number"]),
        ("epochs=0", ["epochs", "at least 1"]),
        ("views.random=perhaps", ["views.random", "true or false"]),
        ("views.count=null", ["views.count", "a whole number"]),
        ("optim.lr=.nan", ["optim.lr", "finite"]),
        ("precision=fp16", ["precision", "fp32", "bf16"]),
        ("plan.packer=best", ["plan.packer", "exact", "next_fit"]),
        ("asit.mask_fill=ones", ["asit.mask_fill", "zeros", "noise", "clip"]),
        ("asit.mask_shape=disks", ["asit.mask_shape", "blocks", "time", "frequency"]),
        ("asit.mask_target_least=0.8", ["asit.mask_target_least (0.8)", "asit.mask_target (0.7)"]),
        ("asit.mask_target=1", ["asit.mask_target", "between 0 and 0.99"]),
        ("asit.mask_copied_share=1", ["asit.mask_copied_share", "between 0 and 0.99"]),
        ("asit.mask_copied=1.5", ["asit.mask_copied", "between 0 and 1"]),
        ("asit.mask_time_share=0", ["asit.mask_time_share", "between 0.01 and 1"]),
        ("asit.mask_frequency_share=0", ["asit.mask_frequency_share", "between 0.01 and 1"]),
        ("asit.prototypes_data=100", ["asit.prototypes_data (100)", "asit.heads", "partly", "separate"]),
        ("asit.heads=own", ["asit.heads", "shared", "partly", "separate"]),
        ("asit.gain=free", ["asit.gain", "fixed", "trained"]),
        ("asit.teacher_temperature_start=0.04", ["asit.teacher_temperature_epochs"]),
        ("asit.teacher_temperature_epochs=5", ["asit.teacher_temperature_start", "leave the epochs at 0"]),
        ("asit.teacher_temperature_start=0", ["asit.teacher_temperature_start", "above 0"]),
        ("optim.clip_each=true", ["optim.clip_each", "engine: oss"]),
        ("asit.mask_fil=clip", ["asit.mask_fil", "asit.mask_fill"]),
        ("model.pooling=max", ["model.pooling", "cls", "attention", "mean"]),
        ("model.table_like=vit", ["model.table_like", "asit", "ast"]),
        ("model.stride=20", ["model.stride", "between 1 and 16"]),
        ("model.stride=10", ["ASiT", "model.stride must be 16"]),
        ("model.distilled=true", ["ASiT", "model.distilled false"]),
        ("asit.local_on=some", ["asit.local_on", "masked", "all"]),
        ("asit.koleo_on=row", ["asit.koleo_on", "rows", "pooled"]),
        ("asit.koleo_on=pooled", ["asit.koleo_on", "asit.weight_koleo must be above 0"]),
        ("optim.layer_decay=0.75", ["optim.layer_decay", "for fine-tuning"]),
        ("optim.head_scale=10", ["optim.head_scale", "for fine-tuning"]),
        ("finetune.loss=ce", ["finetune", "pretrain"]),
        ("step.tokens=4096", ["step.clips", "step.tokens", "both"]),
        ("step.clips=null", ["step.clips", "step.tokens", "neither"]),
        ("views.frames=100", ["views.frames", "multiple of 16"]),
        ("views.pad_to=100", ["views.pad_to", "multiple of 16"]),
        ("views.pad_to=1024", ["views.pad_to", "views.frames"]),
        ("views.local_frames=100", ["views.local_frames", "multiple of 16"]),
        ("views.local_count=-1", ["views.local_count", "at least 0"]),
        ("views.resolutions=[]", ["views.resolutions", "above 0"]),
        ("views.resolutions=[1, .nan]", ["views.resolutions", "above 0"]),
        ("views.resolutions=[1.001]", ["views.resolutions", "whole number of samples", "gives one is 1 ("]),
        ("views.resolutions=2", ["views.resolutions", "a list of numbers"]),
        ("views.poolings=[1.5]", ["views.poolings", "a list of whole numbers"]),
        ("views.poolings=[0]", ["views.poolings", "above 0"]),
        ("views.pad_with=noise", ["views.pad_with", "silence", "zero"]),
        ("views.roll=2", ["views.roll", "between 0 and 1"]),
        ("augment.mixup=0.5", ["augment", "finetune"]),
        ("model.heads=7", ["model.dim", "model.heads"]),
        ("views.count=1", ["views.count", "asit.weight_global"]),
        ("front.mean=1", ["front.mean", "front.std"]),
        ("deepspeed.zero_optimization=2", ["must be a section, such as deepspeed.zero_optimization.stage=2, not 2"]),
        ("deepspeed.zero_optimization=null", ["deepspeed.zero_optimization must be a section", "not None"]),
        ("deepspeed.bf16=true", ["deepspeed.bf16 must be a section", "precision=bf16", "not True"]),
        ("deepspeed.data_types=fp32", ["deepspeed.data_types.grad_accum_dtype=fp32", "not 'fp32'"]),
        ("deepspeed.zero_optimization.stage=two", ["deepspeed.zero_optimization.stage must be 0, 1, 2", "not 'two'"]),
        ("deepspeed.zero_optimization.stage=1.7", ["deepspeed.zero_optimization.stage", "not 1.7"]),
        ("deepspeed.zero_optimization.stage=true", ["deepspeed.zero_optimization.stage", "not True"]),
        ("deepspeed.zero_optimization.stage=4", ["deepspeed.zero_optimization.stage", "not 4"]),
        ("run.name=../b", ["run.name"]),
        ("run.name=/b", ["run.name"]),
        ("track.mlflow=no", ["track.mlflow", "auto", "off"]),
        ("epochs", ["key=value", "'epochs'"]),
        ("=3", ["key=value"]),
        ("optim..lr=3", ["key=value"]),
        ("optim.betas=[1", ["optim.betas", "YAML"]),
    ],
)
def test_a_mistake_on_the_command_line_is_named(configs: Path, override: str, words: list[str]) -> None:
    message = refused(configs, override)
    for word in words:
        assert word in message


def test_views_that_contradict_each_other_are_named(configs: Path) -> None:
    for words, said in (
        (["views.pad_with=zero", "views.pad=false"], "views.pad_with"),
        (["views.pad_with=zero", "views.frames=null"], "views.pad_with"),
        (["views.pad_to=1024", "views.frames=null", "views.pad=false"], "views.pad_to"),
        (["views.local_count=4", "views.local_frames=32", "asit.weight_global=0"], "set views.local_count to 0"),
        (["views.local_count=1"], "views.local_frames (192) must be below views.frames (64), such as 16,"),
        (["views.local_count=1", "views.local_frames=64"], "views.local_frames (64) must be below views.frames (64)"),
        (["asit.freeze_output_epochs=1", "optim.name=adam"], "asit.freeze_output_epochs needs optim.name adamw"),
        (["step.clips=null", "step.tokens=150", "views.local_count=4", "views.local_frames=48"], "2 x 64 and 4 x 48"),
    ):
        assert said in refused(configs, *words)
    for words, said in (
        (["views.count=1", "views.local_count=2"], "views.local_count"),
        (["augment.mixup=1.5"], "augment.mixup"),
        (["augment.drop_tokens=1"], "augment.drop_tokens"),
        (["augment.time_scale=seconds"], "augment.time_scale"),
        (["model.distilled=true", "model.pooling=mean"], "model.distilled"),
        (["finetune.take_head=true"], "needs an init"),
        (["model.table_like=ast", "model.positions=factorised"], "model.table_like"),
        (["model.stride=10", "step.clips=null", "step.tokens=400"], "one clip of 589 tokens"),  # 49 x 12, and CLS
    ):
        with pytest.raises(RecipeError, match=said):
            load_recipe("finetune", "esc50", words)


@pytest.mark.parametrize("key", ["asit.weight_koleo=0.1", "asit.mask_fill=clip", "asit.mask_copied=0.5"])
def test_what_looks_at_other_clips_needs_packs_of_several(configs: Path, key: str) -> None:
    tokens = ["step.clips=null", "step.tokens=400", "views.pad=false"]
    for step, bound in ((["step.clips=1"], "step.clips"), ([*tokens, "step.max_clips=1"], "step.max_clips")):
        message = refused(configs, key, *step)
        assert key.partition("=")[0] in message
        assert f"{bound} must be above 1" in message
    load_recipe("pretrain", "base", [key, "step.clips=2", "step.max_clips=1"], configs)  # which bounds tokens alone
    load_recipe("pretrain", "base", [key, *tokens, "step.max_clips=2"], configs)


def test_a_recipe_becomes_a_policy() -> None:
    elastic = ["views.frames=null", "step.clips=null", "step.tokens=2048", "augment.mixup=0.5"]
    elastic += [
        "augment.drop_tokens=0.1",
        "views.random=true",
        f"views.resolutions={[c / 10 for c in range(10, 41, 2)]}",
    ]
    recipe = load_recipe("finetune", "esc50", elastic)
    policy = training_policy(recipe)
    assert policy.hops == tuple(range(160, 641, 32))
    assert (policy.mixup, policy.mixup_beta, policy.drop_tokens, policy.max_samples) == (0.5, 10, 0.1, 480_000)
    score = evaluation_policy(recipe)
    assert (score.hops, score.mixup, score.drop_tokens, score.max_samples) == ((160,), 0.0, 0.0, 480_000)
    ast = load_recipe("finetune", "esc50", ["model.stride=10", "model.distilled=true"])
    assert (training_policy(ast).stride, evaluation_policy(ast).distillation_token) == (10, True)
    crops = load_recipe("pretrain", "asit", ["views.local_count=4", "views.roll=0.5"])
    policy = training_policy(crops)
    assert (policy.segments, policy.local_frames, policy.roll, policy.max_samples) == (6, 192, 0.5, None)
    assert evaluation_policy(crops).segments == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {lrr: 1}", ["optim.lrr", "wrong.yaml", "optim.lr"]),
        ("epochs: many", ["epochs", "wrong.yaml", "a whole number"]),
        ("precision: fp16", ["precision", "wrong.yaml", "bf16"]),
        ("- a\n- b", ["wrong.yaml", "key: value"]),
        ("epochs: 1\nepochs: 2", ["wrong.yaml", "epochs", "twice"]),
        ("? [seed, epochs]\n: 1\n", ["wrong.yaml", "a key must be one word"]),
        ("epochs: [1", ["wrong.yaml", "line"]),
        ("defaults: bse", ["bse", "wrong.yaml", "base"]),
        ("defaults: {a: 1}", ["defaults", "wrong.yaml"]),
        ("stage: finetune", ["finetune", "pretrain", "wrong.yaml"]),
        ("!!python/object/apply:os.system ['true']", ["wrong.yaml", "YAML"]),
    ],
)
def test_a_mistake_in_a_file_names_the_file(configs: Path, text: str, words: list[str]) -> None:
    (configs / "pretrain" / "wrong.yaml").write_text(text)
    message = refused(configs, name="wrong")
    for word in words:
        assert word in message


def test_missing_recipes_and_circles(configs: Path) -> None:
    assert "leaf" in refused(configs, name="leef")
    assert "nothere.yaml" in refused(configs, name="some/nothere.yaml")
    assert "circle_a -> circle_b -> circle_a" in refused(configs, name="circle_a")
    with pytest.raises(RecipeError, match="pretrain, finetune and features"):
        load_recipe("pretrian", "base", [], configs)


# Anything may stand in the first two; the others are of other stages, which is another message.
NOT_HERE = ("deepspeed", "subset", "augment", "folds", "finetune", "head", "extract")


@settings(max_examples=50)
@given(st.sampled_from(sorted(keys())), st.data())
def test_any_misspelt_key_is_refused(key: str, data: st.DataObject) -> None:
    """One letter dropped or doubled: named, with a valid key beside it."""
    place = data.draw(st.integers(0, len(key) - 1))
    wrong = key[:place] + data.draw(st.sampled_from(["", key[place] * 2])) + key[place + 1 :]
    parts = wrong.split(".")
    if wrong in VALID or not all(parts) or parts[0] in NOT_HERE:
        return
    with pytest.raises(RecipeError) as caught:
        load_recipe("pretrain", "asit", [f"{wrong}=1"])
    _, _, named = str(caught.value).partition("; ")
    assert any(known in named for known in VALID)


def test_hash_and_differences_follow_what_decides_the_numbers() -> None:
    base = load_recipe("pretrain", "asit_tiny")
    moved = load_recipe("pretrain", "asit_tiny", ["run.name=b", "loader.workers=0", "data=/x", "track.mlflow=off"])
    other = load_recipe("pretrain", "asit_tiny", ["optim.lr=1e-3"])
    assert recipe_hash(base) == recipe_hash(moved)
    assert differences(decisive(base), decisive(moved)) == {}
    assert recipe_hash(base) != recipe_hash(other)
    assert differences(decisive(base), decisive(other)) == {"optim.lr": (0.0005, 0.001)}


def test_a_recipe_is_frozen() -> None:
    recipe = load_recipe("pretrain", "asit")
    assert isinstance(recipe, Recipe)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.epochs = 3  # type: ignore[misc]


def test_what_other_programs_call_a_key_leads_to_one_that_there_is() -> None:
    assert {*ELSEWHERE.values()} <= {*keys()}
    assert not {*ELSEWHERE} & {key.rpartition(".")[2] for key in keys()}
