"""The DeepSpeed section: filled in, and refused where DeepSpeed would silently do something else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gamut.errors import RecipeError
from gamut.recipe import schema
from gamut.recipe.check import check
from gamut.recipe.load import load_recipe
from gamut.train.config import ELSEWHERE, KEYS, engine_config

RECIPE = schema.Recipe(step=schema.Step(packs=8, clips=2), loader=schema.Loader(packs_per_forward=2))


def made(section: dict, **changes: object) -> dict:
    return engine_config(replace(RECIPE, deepspeed=section, **changes), world=2, accumulation=2, elements=1000)


@pytest.mark.parametrize(("elements", "bucket"), [(1, 2), (999, 1000), (1000, 1000), (10**10, 500_000_000)])
def test_buckets_hold_the_model_and_are_even(elements: int, bucket: int) -> None:
    """DeepSpeed refuses an odd one in fp32: a model with an odd number of classes would not start."""
    zero = engine_config(RECIPE, world=2, accumulation=2, elements=elements)["zero_optimization"]
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == bucket


def test_what_the_recipe_says_is_filled_in() -> None:
    config = made({"zero_optimization": {"stage": 1}, "wall_clock_breakdown": False})
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["gradient_accumulation_steps"] == 2
    assert config["train_batch_size"] == 8
    assert config["gradient_clipping"] == 3.0
    assert config["bf16"] == {"enabled": False}
    assert config["zero_optimization"]["reduce_bucket_size"] == 1000
    assert "data_types" not in config


def test_no_clipping_is_written_too() -> None:
    assert made({}, optim=schema.Optim(clip=0.0))["gradient_clipping"] == 0.0


def test_bf16_sums_gradients_in_fp32() -> None:
    config = made({"zero_optimization": {"stage": 2}}, precision="bf16")
    assert config["bf16"]["enabled"] is True
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    with pytest.raises(RecipeError, match="grad_accum_dtype"):
        made({"zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "bf16"}}, precision="bf16")


def test_the_recipes_own_section_is_not_touched() -> None:
    section = {"zero_optimization": {"stage": 1}}
    made(section)
    assert section == {"zero_optimization": {"stage": 1}}


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"zero_optimisation": {"stage": 1}}, "`zero_optimization`"),
        ({"gradient_cliping": 1.0}, "`gradient_clipping`"),
        ({"gradient_clipping": 1.0}, "optim.clip"),
        ({"train_batch_size": 16}, "step.packs"),
        ({"gradient_accumulation_steps": 4}, "number of ranks"),
        ({"bf16": {"enabled": True}}, "precision"),
        ({"fp16": {"enabled": True}}, "precision"),
        ({"activation_checkpointing": {}}, "compute.activations"),
        ({"compile": {}}, "compute.compile"),
        ({"optimizer": {"type": "AdamW"}}, "optim"),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}, "zero_hpz_partition_size"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "offload_optimizer"),
    ],
)
def test_contradictions_name_the_key(section: dict, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        made(section)


def test_stage_0_is_fp32_only() -> None:
    recipe = replace(load_recipe("pretrain", "asit_tiny"), deepspeed={"zero_optimization": {"stage": 0}})
    check(recipe)
    with pytest.raises(RecipeError, match="ZeRO stage 0 trains only in fp32"):
        check(replace(recipe, precision="bf16"))


def test_the_known_keys_are_those_that_deepspeed_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    asked: set[str] = set()

    class Noting(dict):
        def get(self, key, default=None):
            asked.add(key)
            return super().get(key, default)

        def __getitem__(self, key):
            asked.add(key)
            return super().__getitem__(key)

        def __contains__(self, key):
            asked.add(key)
            return super().__contains__(key)

        def __deepcopy__(self, memory):
            return self

    monkeypatch.setenv("WORLD_SIZE", "1")
    DeepSpeedConfig(Noting(train_micro_batch_size_per_gpu=1, gradient_accumulation_steps=1, train_batch_size=1))
    assert asked <= KEYS, f"DeepSpeed also reads {sorted(asked - KEYS)}"
    # Read by other parts of it than this class.
    elsewhere = {"activation_checkpointing", "aio", "autotuning", "flops_profiler", "optimizer", "scheduler"}
    assert KEYS - asked <= elsewhere
    assert ELSEWHERE.keys() <= KEYS
