"""The DeepSpeed configuration: the recipe's own section, filled in and checked against the rest of the recipe."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from gamut.errors import RecipeError
from gamut.recipe import schema

# The top-level keys that DeepSpeed 0.19.8 reads (it silently ignores any other). Found by letting its
# configuration class read a dictionary that notes the keys asked for; a test does that again.
_NAMES = """
    activation_checkpointing aio amp autotuning bf16 bfloat16 checkpoint comet comms_logger communication_data_type
    compile compression_training csv_monitor curriculum_learning data_efficiency data_types dataloader_drop_last
    datastates_ckpt disable_allgather disable_python_gc dump_state eigenvalue elasticity expert_parallel
    flops_profiler fp16 gradient_accumulation_steps gradient_allreduce_op gradient_clipping
    gradient_predivide_factor graph_harvesting hybrid_engine log_level managed_gradient_accumulation
    memory_breakdown nebula optimizer pipeline prescale_gradients progressive_layer_drop quantize_training
    scheduler seq_parallel_communication_data_type sparse_attention sparse_gradients steps_per_print
    tensor_parallel tensorboard timers torch_autocast train_batch_size train_micro_batch_size_per_gpu
    use_data_before_expert_parallelism vocabulary_size wall_clock_breakdown wandb weight_quantization
    zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization
"""
KEYS = frozenset(_NAMES.split())
# Numbers that are sent in one go beside the backward, or a single parameter's: a block of a ViT-B has 7 million.
BUCKET = 8_000_000

# Keys whose work is done elsewhere here, and where.
ELSEWHERE = {
    "optimizer": "the recipe's section `optim`",
    "scheduler": "the recipe's section `optim`",
    "fp16": "the recipe's key `precision` (fp32 or bf16)",
    "amp": "the recipe's key `precision` (fp32 or bf16)",
    "bfloat16": "the recipe's key `precision` (fp32 or bf16)",
    "torch_autocast": "the recipe's key `precision` (fp32 or bf16)",
    "checkpoint": "our own checkpoints (the recipe's section `checkpoint`)",
    "managed_gradient_accumulation": "the training loop",
    "activation_checkpointing": "the recipe's key `compute.activations`",
    "compile": "the recipe's key `compute.compile`",
    "elasticity": "the plan, which is the same for every number of ranks",
}


SECOND_CUTS = (
    "zero_hpz_partition_size",
    "zero_quantized_weights",
    "zero_quantized_nontrainable_weights",
    "zero_quantized_gradients",
    "mics_shard_size",
)


def stage_of(section: dict[str, Any]) -> int:
    """The ZeRO stage, 0 to 3, that a checked recipe's `deepspeed` section asks for (DeepSpeed's default is 0)."""
    return int(section.get("zero_optimization", {}).get("stage", 0))


def require_settings(section: Mapping[str, Any]) -> None:
    """Raises RecipeError for a key of the recipe's section `deepspeed` that is unknown, or done elsewhere."""
    for key in section:
        if key not in KEYS:
            near = difflib.get_close_matches(key, sorted(KEYS), 1, 0.0)[0]
            raise RecipeError(f"DeepSpeed has no setting `deepspeed.{key}`; the nearest it has is `{near}`.")
        if key in ELSEWHERE:
            raise RecipeError(f"`deepspeed.{key}` cannot be set: that is {ELSEWHERE[key]}. Take the key out.")


def engine_config(recipe: schema.Recipe, world: int, accumulation: int, elements: int) -> dict[str, Any]:
    """What `deepspeed.initialize` gets. A pack is DeepSpeed's unit of batch.

    accumulation: micro-batches a rank and step; elements: numbers in the model's parameters, which bounds the
    reduction buckets.

    Raises RecipeError naming the key: unknown, done elsewhere, or in contradiction to the rest of the recipe.
    """
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in recipe.deepspeed.items()}
    require_settings(config)
    _fill_in_zero(config, recipe, elements)

    micro = recipe.loader.per_forward
    bf16 = recipe.precision == "bf16"
    stated: dict[str, tuple[Any, str]] = {
        "train_micro_batch_size_per_gpu": (micro, "loader.packs_per_forward"),
        "gradient_accumulation_steps": (accumulation, "step.packs, loader.packs_per_forward and the number of ranks"),
        "train_batch_size": (micro * accumulation * world, "step.packs"),
        "gradient_clipping": (float(recipe.optim.clip), "optim.clip"),
    }
    for key, (value, source) in stated.items():
        _state(config, key, value, source, "deepspeed")
    _state(config.setdefault("bf16", {}), "enabled", bf16, "precision", "deepspeed.bf16")
    if bf16:
        kind = config.setdefault("data_types", {})
        # DeepSpeed's default sums gradients in bf16, over micro-steps and over ranks.
        _state(kind, "grad_accum_dtype", "fp32", "precision", "deepspeed.data_types")
        config.setdefault("communication_data_type", "fp32")
        if stage_of(config) == 1:  # add each gradient to its sum as it comes, and free it
            config["bf16"].setdefault("immediate_grad_update", True)
    return config


def _fill_in_zero(config: dict[str, Any], recipe: schema.Recipe, elements: int) -> None:
    zero = config.setdefault("zero_optimization", {})
    stage = stage_of(config)
    for key in ("round_robin_gradients", "parameter_alignment", "elastic_checkpoint"):
        if zero.get(key):
            raise RecipeError(
                f"`deepspeed.zero_optimization.{key}` is not supported: it changes the layout of checkpoints, which "
                "could then not go on with another number of ranks. Take the key out."
            )
    for key in SECOND_CUTS:
        if zero.get(key) not in (None, False, 1) and not (key == "mics_shard_size" and zero[key] == -1):
            raise RecipeError(
                f"`deepspeed.zero_optimization.{key}` is not supported: it keeps a second, or coarser, cut of the "
                "weights, which checkpoints and the teacher do not follow. Take the key out."
            )
    for key in ("offload_optimizer", "offload_param", "cpu_offload", "zenflow"):
        if zero.get(key):
            raise RecipeError(
                f"`deepspeed.zero_optimization.{key}` is not supported: the check for finite gradients needs them on "
                "the training device. Take the key out."
            )
    if stage:
        # DeepSpeed allocates buckets of this many numbers at every backward; its default of 5e8 is 2 GB.
        # In fp32 it refuses an odd one, which is what an odd number of classes would make.
        bucket = max(2, min(500_000_000, elements + elements % 2))
        zero.setdefault("reduce_bucket_size", bucket)
        zero.setdefault("allgather_bucket_size", bucket)


def sums_beside(config: dict[str, Any], recipe: schema.Recipe) -> bool:
    """Whether gradients are summed over the ranks during the backward (gamut/train/summing.py), with `engine_config`'s
    result: where DeepSpeed takes its BF16_Optimizer, and would sum them afterwards, in fp32 and undivided.

    What recomputes runs a backward in the backward, where a gradient may come more than once.
    """
    plain = config.get("communication_data_type") == "fp32" and config["bf16"].get("immediate_grad_update", False)
    defaults = {"prescale_gradients": False, "gradient_predivide_factor": 1.0, "gradient_allreduce_op": "mean"}
    scaled = any(config.get(key, value) != value for key, value in defaults.items())
    bf16 = recipe.precision == "bf16" and stage_of(config) == 1
    return bf16 and plain and not scaled and recipe.compute.activations == "keep"


def copies_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration for a frozen fp32 module that is cut as the model of `config` is (ZeRO-3, no optimiser).

    By default DeepSpeed keeps small parameters gathered for good, and would go on using those copies of a teacher
    whose parts have moved.
    """
    zero = config["zero_optimization"] | {"stage3_param_persistence_threshold": 0}
    batch = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")
    return {"zero_optimization": zero} | {key: config[key] for key in batch}


def _state(section: dict[str, Any], key: str, value: Any, source: str, where: str) -> None:
    if section.setdefault(key, value) != value:
        raise RecipeError(
            f"`{where}.{key}` is {section[key]!r}, but {source} of the recipe makes it {value!r}. Take the key out: it "
            "is filled in from the recipe."
        )
