"""What a recipe may contain: one frozen dataclass a section. A recipe is data; these are its types.

Each key has its default, meaning and bounds beside it (`gamut.settings.key`); relations between keys are checked in
gamut/recipe/check.py. docs/recipes.md is generated from here (`python -m gamut.recipe.reference`). Code takes the
section that it needs, never the whole recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gamut.numbers import PATCH
from gamut.plan.policy import Policy
from gamut.recipe.find import STAGES
from gamut.recipe.stages import Asit as Asit
from gamut.recipe.stages import Augment as Augment
from gamut.recipe.stages import Extract as Extract
from gamut.recipe.stages import Finetune as Finetune
from gamut.recipe.stages import Folds as Folds
from gamut.recipe.stages import Head as Head
from gamut.recipe.stages import Probe as Probe
from gamut.registry import BACKBONES, OBJECTIVES
from gamut.remote import Remote
from gamut.settings import above, at_least, between, bounds_of, key, multiple_of, one_of, section, some

AUTO = "auto"  # of `loader.packs_per_forward`
PLAN = bounds_of(Policy)  # keys that the plan gets have the bounds of its policy

# Keys of the section `deepspeed` that affect only communication and output. (Not `sub_group_size`, by which checkpoints
# are split.)
DEEPSPEED_MAY_CHANGE = (
    *("wall_clock_breakdown", "steps_per_print", "dump_state", "memory_breakdown", "comms_logger", "flops_profiler"),
    *(
        "communication_data_type",
        "log_level",
        "timers",
        "tensorboard",
        "wandb",
        "comet",
        "csv_monitor",
        "disable_python_gc",
    ),
    "zero_optimization.contiguous_gradients",
    "zero_optimization.overlap_comm",
    "zero_optimization.reduce_scatter",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.use_multi_rank_bucket_allreduce",
    "zero_optimization.allgather_partitions",
    "zero_optimization.allgather_bucket_size",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
    "zero_optimization.stage3_model_persistence_threshold",
    "zero_optimization.stage3_max_live_parameters",
    "zero_optimization.stage3_max_reuse_distance",
    "zero_optimization.stage3_module_granularity_threshold",
    "zero_optimization.log_trace_cache_warnings",
)


@dataclass(frozen=True)
class FrontEnd:
    """The log-mel (AST's convention) and its normalisation (x - mean) / (2 * std)."""

    mean: float | None = key(None, "null: the shard set's own, as computed by `gamut shards stats`")
    std: float | None = key(None, "set together with `mean`", above(0))
    mode: str = key(
        "fast",
        "fast (within 1e-4 of Kaldi), or exact (bit-identical to torchaudio.compliance.kaldi.fbank)",
        one_of("fast", "exact"),
    )


@dataclass(frozen=True)
class Model:
    """A backbone on packed 16x16 patches. All keys but `backbone` are for the vision transformer."""

    backbone: str = key(
        "vit", "what turns patches into tokens; plugins may register others", one_of(registry=BACKBONES)
    )
    dim: int = key(768, "width of a token, a multiple of `heads`", at_least(1))
    depth: int = key(12, "blocks", at_least(1))
    heads: int = key(12, "attention heads of a block", at_least(1))
    mlp_ratio: float = key(4.0, "width of a block's MLP, relative to `dim`", above(0))
    positions: str = key(
        "learned",
        "learned (a grid of time x frequency, and CLS), or factorised (a table of time and one of frequency)",
        one_of("learned", "factorised"),
    )
    table_frames: int = key(592, "length of the time axis of the position table", multiple_of(PATCH), unit="frames")
    table_like: str = key(
        "asit",
        "how clips of another length than the table get positions. asit: shorter ones take its first columns, longer "
        "ones stretch it bicubically; ast (only for learned positions): its middle columns, or a linear stretch. It "
        "also decides how weights of an image ViT are taken: the image's rows become time (asit) or frequency (ast)",
        one_of("asit", "ast"),
    )
    norm: str = key(
        "pre",
        "where LayerNorms stand. pre: before a block's attention and its MLP, and one after the last block (ViT); "
        "post: after each of the two has been added, and one before the first block (EAT, data2vec 2.0)",
        one_of("pre", "post"),
    )
    pooling: str = key(
        "cls",
        "a clip's vector: cls (class token), attention (ElasticAST: a learned query, masked), or mean (of its tokens). "
        "Two more are ways to classify, in fine-tuning. rows: from the means over time of each row of patches, side by "
        "side, which tell frequencies apart (MSM-MAE, M2D); frames, for events with times: every column of patches is "
        "classified, and a clip by the linear softmax of its columns",
        one_of("cls", "attention", "mean", "rows", "frames"),
    )
    pooling_heads: int = key(12, "heads of attention pooling", at_least(1))
    distilled: bool = key(False, "add DeiT's second token beside CLS: a clip's vector is the mean of the two (AST)")
    stride: int = key(
        16,
        "distance between the 16x16 patches: 16, or less if they overlap (AST: 10)",
        PLAN["stride"],
        unit="frames and mel bins",
    )
    drop_path: float = key(
        0.1, "stochastic depth of the last block; it grows linearly over the blocks", between(0, 0.999)
    )
    init_std: float = key(
        0.02,
        "standard deviation of the initial weights. ViT's 0.02 is half of 1 / sqrt(768); a narrow classifier trained "
        "from scratch learns faster with about 1 / sqrt(dim)",
        between(1e-6, 1),
    )
    attention_scale: float | None = key(
        None, "scale of the logits in blocks and attention pooling; null: 1 / sqrt(dim of a head)", above(0)
    )
    head_eps: float = key(
        1e-6, "epsilon of the classifier's LayerNorm (AST's own weights: 1e-5, in transformers 1e-12)", above(0)
    )


@dataclass(frozen=True)
class Views:
    """What the model sees of each clip."""

    count: int = key(1, "views a clip", PLAN["views"])
    frames: int | None = key(None, "length of a crop; null: the clip's own", PLAN["crop_frames"], unit="frames")
    random: bool = key(True, "a random crop, else the first `frames`")
    pad: bool = key(
        True, "pad shorter clips to `frames`; false: they keep their length, rounded down to a multiple of 16 frames"
    )
    pad_with: str = key(
        "silence",
        "silence (zeros in the waveform; ASiT), or zero (log-mel frames of 0.0; AST)",
        one_of("silence", "zero"),
    )
    pad_to: int | None = key(
        None,
        "cut or pad to this many frames at 10 ms; at C times 10 ms to floor16(pad_to / C)",
        PLAN["pad_to"],
        unit="frames",
    )
    max_frames: int | None = key(None, "native length: longer clips are cut to this", PLAN["max_frames"], unit="frames")
    max_seconds: float | None = key(
        30.0, "native length (neither `frames` nor `pad_to`): longer clips are cut to this", at_least(0.025), unit="s"
    )
    too_long: str = key("cut", "clips over the limit: cut them, or stop with an error", PLAN["too_long"])
    resolutions: list[float] = key(
        [1.0], "C: hops of 10 ms * C; one of several is drawn for each clip and epoch", some(above(0))
    )
    poolings: list[int] = key(
        [1], "numbers of frames averaged into one; one of several is drawn for each clip and epoch", some(above(0))
    )
    local_count: int = key(0, "additional, shorter crops a clip (ASiT's multi-crop: 4)", PLAN["local_views"])
    local_frames: int = key(192, "their length, less than `frames`", PLAN["local_frames"], unit="frames")
    roll: float = key(
        0.0, "probability that a waveform is rolled by a random amount before it is cropped (ASiT: 0.5)", PLAN["roll"]
    )


@dataclass(frozen=True)
class Step:
    """A global step is `packs` packs; a pack holds `clips` clips, or as many as fit into `tokens`."""

    packs: int = key(32, "packs a global step, on all ranks together", PLAN["packs"])
    clips: int | None = key(None, "clips a pack", PLAN["clips"])
    tokens: int | None = key(None, "transformer tokens a pack, instead of `clips`", PLAN["tokens"])
    max_clips: int = key(64, "at most so many clips a pack when packing by tokens", PLAN["max_clips"])


@dataclass(frozen=True)
class PlanOptions:
    """Which clips an epoch draws, and how they are ordered and packed."""

    packer: str = key(
        "exact", "exact (subset-sum fill with lookahead), or next_fit (ElasticAST, in order)", PLAN["packer"]
    )
    lookahead: int = key(64, "clips that the exact packer can choose from", PLAN["lookahead"])
    window: int = key(16384, "clips shuffled together within a lane", PLAN["window"])
    shuffle: bool = key(True, "another order every epoch")
    locality: str = key(
        "none", "none, or node (the ranks of a node read the same shards, front to back)", PLAN["locality"]
    )
    draws: int | None = key(None, "clips drawn an epoch; null: as many as there are", PLAN["draws"])
    block: int = key(
        1 << 20,
        "draws planned together, at least; a set of fewer than two blocks is planned an epoch at a time",
        PLAN["block"],
    )
    grow: bool = key(
        False,
        "in pretraining: take at each epoch's border what `gamut shards add` has appended; else a run goes on with the "
        "set as it began",
        may_change=True,
    )
    weights: str = key(
        "",
        "draw clips by weight, with replacement: balanced (over labels), or a file of keys and weights; empty: no",
    )


@dataclass(frozen=True)
class Loader:
    """How the clips of a step are read, and how far ahead."""

    workers: int = key(2, "processes a rank that read and decode; 0: the rank reads by itself", at_least(0))
    packs_per_forward: int | str = key(
        AUTO,
        "packs joined in one forward: memory and speed only, never results. auto: on GPUs as many as fit "
        "by the account of `gamut estimate`, on CPU 1",
        at_least(1, AUTO),
    )
    prefetch: int = key(2, "steps that are read ahead", at_least(1))
    max_holes: float = key(
        0.01, "largest share of an epoch's clips that may be unusable; beyond it the run stops", between(0, 1)
    )

    @property
    def per_forward(self) -> int:
        """`packs_per_forward` as a number. Where auto depends on a GPU's memory, `gamut.estimate.fit` has put a number
        in its place; else it is 1."""
        return 1 if self.packs_per_forward == AUTO else int(self.packs_per_forward)


@dataclass(frozen=True)
class Optim:
    """The optimiser, with learning rate and weight decay over the run."""

    name: str = key("adamw", "adamw, or adam (weight decay as part of the gradient)", one_of("adamw", "adam"))
    lr: float = key(5e-4, "learning rate after the warm-up, for `lr_base_batch` clips a global step", at_least(0))
    lr_base_batch: int = key(
        256, "clips a global step that `lr` is for; it is scaled to the actual number; 0: no scaling", at_least(0)
    )
    lr_rule: str = key(
        "linear", "scaling with that number: linear, or with its square root (sqrt)", one_of("linear", "sqrt")
    )
    schedule: str = key(
        "cosine",
        "after the warm-up: cosine (to `lr_end`), or gamma (decay by epochs, as AST)",
        one_of("cosine", "gamma"),
    )
    lr_end: float = key(1e-6, "where the cosine ends", at_least(0))
    gamma: float = key(0.5, "schedule gamma: factor of each decay", between(0, 1))
    gamma_from: int = key(1, "schedule gamma: first decay after this epoch", at_least(0))
    gamma_every: int = key(1, "schedule gamma: epochs between decays", at_least(1))
    warmup_epochs: float = key(10.0, "length of the warm-up, at most a quarter of the run", at_least(0), unit="epochs")
    warmup_steps: int | None = key(None, "instead of `warmup_epochs`", at_least(0), unit="steps")
    warmup_start: float = key(0.0, "initial rate of the warm-up, as a share of the peak", between(0, 1))
    betas: tuple[float, float] = key((0.9, 0.999), "Adam's betas, each below 1", between(0, 1))
    eps: float = key(1e-8, "Adam's epsilon", at_least(0))
    weight_decay: float = key(0.04, "initial weight decay", at_least(0))
    weight_decay_end: float = key(0.4, "final weight decay, reached by a cosine from `weight_decay`", at_least(0))
    undecayed: str = key(
        "vectors",
        "what has no weight decay: vectors (biases and 1-D parameters), embeddings (class tokens and positions too), "
        "or nothing",
        one_of("vectors", "embeddings", "nothing"),
    )
    layer_decay: float = key(1.0, "fine-tuning: learning rate of a block, relative to the one above it", between(0, 1))
    head_scale: float = key(
        1.0, "fine-tuning an `encoder` with a head: learning rate of the head, relative to the encoder", at_least(0)
    )
    clip: float = key(3.0, "largest global gradient norm; 0: no clipping", at_least(0))
    clip_each: bool = key(False, "clip the norm of each tensor separately (published ASiT code); only for engine oss")


@dataclass(frozen=True)
class Compute:
    """How the blocks are computed: affects memory and time, not results."""

    activations: str = key(
        "keep",
        "keep, recompute (in the backward, from each block's input), or offload (that input too)",
        one_of("keep", "recompute", "offload"),
    )
    compile: bool | None = key(
        None, "compile the blocks by torch.compile, which rounds differently; by default on GPUs, and not on a CPU"
    )

    def compiles(self, kind: str) -> bool:
        """Whether the blocks are to be compiled for a device of a kind, cuda or cpu."""
        return kind == "cuda" if self.compile is None else self.compile


@dataclass(frozen=True)
class Guard:
    """What is looked at so that a run does not go wrong in silence. Numbers that are not finite are always refused."""

    policy: str = key(
        "flag",
        "of a loss spike or a collapse: flag, stop, or back (to the last checkpoint, leaving steps out)",
        one_of("flag", "stop", "back"),
    )
    loss_spike: float = key(
        10.0, "a loss so many spreads above the median of the last 64 is a spike; 0: none is", at_least(0)
    )
    leave_out: int = key(
        10,
        "steps left out after going back: those that end with the spike, or a collapse's first",
        at_least(1),
        unit="steps",
    )
    collapse_steps: int = key(
        1000, "steps in a row that the objective calls collapsed; 0: not looked at", at_least(0), unit="steps"
    )
    divergence_steps: int = key(
        100, "every so many steps the ranks compare what they must have alike; 0: never", at_least(0), unit="steps"
    )


@dataclass(frozen=True)
class Checkpoint:
    """When the run is saved, and what is kept."""

    every_epochs: float = key(1.0, "how often; 0: by the clock, and at the end of the run", at_least(0), unit="epochs")
    every_minutes: float = key(15.0, "saved when the first of the two intervals is over", at_least(0), unit="minutes")
    # 0 by default: a run whose epochs take seconds saves quickly too, and would otherwise lose minutes to a kill.
    least_minutes: float = key(
        0.0,
        "none sooner than this after the one before, by either interval; the end of a run, an early one too, and "
        "`keep_every` do not wait. For epochs of about a minute with much to save",
        at_least(0),
        unit="minutes",
    )
    keep: int = key(3, "number of the newest checkpoints to keep", at_least(1))
    keep_every: int = key(
        0, "also keep those after every so many epochs, and the last, permanently; 0: none", at_least(0), unit="epochs"
    )
    copy_to: str = key(
        "",
        "a folder on another file system: FOLDER/NAME/checkpoints gets copies in the background, from which the run "
        "goes on where its own are gone or damaged; empty: none",
    )


@dataclass(frozen=True)
class Track:
    """Where a run's metrics and figures go, in addition to its folder."""

    mlflow: str = key("auto", "auto: SQLite in the runs folder; a server's URI; off")
    experiment: str = key("gamut", "name of MLflow's experiment")
    picture_epochs: float = key(
        10.0, "epochs between figures, which are also drawn at the end; 0: none", at_least(0), unit="epochs"
    )
    log_steps: int = key(1, "steps between lines of metrics", at_least(1), unit="steps")
    weights_mb: float = key(
        64.0,
        "at a run's end MLflow gets its weights, as a folder that `gamut.load` opens, up to this size; 0: none",
        at_least(0),
        unit="MB, 10^6 bytes",
    )
    trace_steps: list[int] = key(
        [],
        "first and last step of a trace by torch's profiler, of the first rank, in the run's folder `trace`: for "
        "ui.perfetto.dev, and a table; empty: none",
        at_least(1),
        unit="steps",
    )


@dataclass(frozen=True)
class Run:
    """The folder of a run, and how its ranks run."""

    folder: str = key("runs", "a run is in FOLDER/NAME")
    name: str = key("", "empty: the recipe's name")
    threads: int = key(0, "torch threads a rank on CPU; 0: cores / ranks on this machine", at_least(0))
    deterministic: bool = key(
        False, "on GPUs: kernels with the same bits every time, some of them slower; always so on CPU"
    )
    timeout_seconds: float = key(
        600.0, "a rank that makes no progress for this long prints its stacks and aborts", above(0), unit="s"
    )


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. Keys of another stage (`stage=...`) keep their defaults: setting one is an error."""

    stage: str = key("pretrain", "what the recipe is for; set by the command", one_of(*STAGES))
    # The data may be moved, but not changed: that is checked by the fingerprint of the index.
    data: str = key("", "a shard set: a folder, or http(s)://, s3:// or pipe:", may_change=True)
    dataset: str = key("", "converter that makes it, for the message when it is missing", may_change=True)
    init: str = key(
        "",
        "where the weights start from: a run or checkpoint folder, a file of weights, a ViT of images (timm, "
        "transformers), public weights of ElasticAST, AST, SSAST, ASiT, AudioMAE, EAT, M2D or BEATs",
    )
    objective: str = key(
        "asit",
        "what is learned without labels; plugins may register others",
        one_of(registry=OBJECTIVES),
        stage="pretrain",
    )
    options: dict[str, Any] = key(
        {},
        "options of an `objective` of a plugin, by its own names; those of asit are in `asit`",
        stage="pretrain",
    )
    features: str = key(
        "",
        "a cache of features (`gamut features`) to train a `head` on; `init` is then a head",
        stage="finetune",
    )
    encoder: str = key(
        "",
        "a Whisper (a folder of transformers, or an OpenAI .pt) to fine-tune with a `head`; `init` is then a head",
        stage="finetune",
    )
    mixture: dict[str, float] = key({}, "folder of a set, relative to `data` -> proportion of the draws", above(0))
    subset: dict[str, Any] = key(
        {},
        "which clips: `{fold: [1, 2], label: [dog], keys: FILE, per_class: 10, share: 0.1, seed: 0}`; any other name "
        "is a column of the index, with the values (or names of values) to keep; a `?` after the name makes it apply "
        "only to sets with such a column",
    )
    seed: int = key(0, "seed of everything random", between(0, 2**63 - 1))
    epochs: int = key(40, "length of the run", at_least(1))
    precision: str = key("fp32", "fp32, bf16, or fp16 (of a frozen encoder only)", one_of("fp32", "bf16", "fp16"))
    engine: str = key(
        "deepspeed",
        "deepspeed (ZeRO, as the section `deepspeed` says), or oss (fairscale's OSS under DDP)",
        one_of("deepspeed", "oss"),
    )
    front: FrontEnd = section(FrontEnd)
    model: Model = section(Model)
    head: Head = section(Head, stage="finetune")
    views: Views = section(Views)
    step: Step = section(Step)
    plan: PlanOptions = section(PlanOptions)
    loader: Loader = section(Loader, may_change=True)
    remote: Remote = section(Remote, may_change=True)
    optim: Optim = section(Optim)
    asit: Asit = section(Asit, stage="pretrain")
    augment: Augment = section(Augment, stage="finetune")
    folds: Folds = section(Folds, stage="finetune")
    finetune: Finetune = section(Finetune, stage="finetune")
    extract: Extract = section(Extract, stage="features")
    compute: Compute = section(Compute, may_change=True)
    guard: Guard = section(Guard, may_change=True)
    checkpoint: Checkpoint = section(Checkpoint, may_change=True)
    track: Track = section(Track, may_change=True)
    probe: Probe = section(Probe, may_change=True, stage="pretrain")
    run: Run = section(Run, may_change=True)
    deepspeed: dict[str, Any] = key(
        {"zero_optimization": {"stage": 1}},
        "DeepSpeed's own settings, by its names; what the recipe sets elsewhere is filled in",
        may_change=DEEPSPEED_MAY_CHANGE,
    )
