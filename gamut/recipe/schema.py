"""What a recipe may say: one frozen dataclass a section. A recipe is data; these are its types.

Code takes the section it needs, never the whole recipe. Units are in the names or the comments: Hz, ms, frames, tokens,
clips, epochs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gamut.remote import Remote
from gamut.settings import key, section

# Of the section `deepspeed`: how it sends and prints. (`sub_group_size` is not among them: checkpoints are cut by it.)
DEEPSPEED_MAY_CHANGE = (
    *("wall_clock_breakdown", "steps_per_print", "dump_state", "memory_breakdown", "comms_logger", "flops_profiler"),
    *("log_level", "timers", "tensorboard", "wandb", "comet", "csv_monitor", "disable_python_gc"),
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

    mean: float | None = None  # None: the shard set's own statistics, or computed by `gamut.shards stats`
    std: float | None = None
    mode: str = "fast"  # fast (within 1e-4 of Kaldi) | exact (bit-identical to torchaudio.compliance.kaldi.fbank)


@dataclass(frozen=True)
class Model:
    """A vision transformer on packed 16x16 patches."""

    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    positions: str = "learned"  # learned (time x frequency grid + CLS) | factorised (time table + frequency table)
    table_frames: int = 592  # length of the time axis of the position table, in frames (a multiple of 16)
    # Clips of other lengths than the table. asit: a shorter one takes its first columns, a longer one a bicubic
    # stretch; ast (learned positions alone): its middle columns, or a linear stretch. A start from a ViT of images
    # follows: the image's rows become time (asit) or frequency (ast).
    table_like: str = "asit"
    pooling: str = "cls"  # cls | attention (ElasticAST: one learned query, masked) | mean
    pooling_heads: int = 12
    distilled: bool = False  # DeiT's second token beside CLS: a clip's vector is the mean of the two (AST)
    stride: int = 16  # of the 16x16 patches, frames and mel bins: 16, or less where they overlap (AST: 10)
    drop_path: float = 0.1
    # Deviation of the weights before training. ViT's 0.02 is half of 1 / sqrt(768); a narrow classifier from scratch
    # learns sooner from about 1 / sqrt(dim).
    init_std: float = 0.02
    attention_scale: float | None = None  # of the blocks and of attention pooling; None: 1 / sqrt(head dim)
    head_eps: float = 1e-6  # of the classifier's LayerNorm (AST's own weights: 1e-5, in transformers 1e-12)


@dataclass(frozen=True)
class Head:
    """A head on all layers of an encoder (Whisper-AT): for runs with `features` or an `encoder`."""

    kind: str = "tl_tr"  # last_mlp | wa_mlp | wa_tr | tl_tr
    dim: int | None = None  # the features are mapped to so many dimensions first (512: TL-Tr-512); None: their own
    time_heads: int = 1  # attention heads of the block over time
    layer_heads: int = 8  # and of the block over layers
    # Of an `encoder` that is fine-tuned; cached features have been cut and averaged when they were made.
    seconds: float = 10.0  # the window: views.frames must just cover it
    pool: int = 20  # steps of the encoder averaged into one


@dataclass(frozen=True)
class Views:
    """What of each clip the model sees."""

    count: int = 1  # views a clip
    frames: int | None = None  # crop length in frames (a multiple of 16); None: the clip's own length
    random: bool = True  # random crop, else the first `frames`
    pad: bool = True  # pad shorter clips to `frames`; False: they keep their own length, floored to 16 frames
    pad_with: str = "silence"  # silence: zeros in the waveform (ASiT) | zero: log-mel frames of 0.0 (AST)
    pad_to: int | None = None  # cut or pad to this many frames at 10 ms; at C times 10 ms to floor16(pad_to / C)
    max_frames: int | None = None  # native length: a longer clip is cut to this many frames
    max_seconds: float | None = 30.0  # native length (neither `frames` nor `pad_to`): a longer clip is cut there
    too_long: str = "cut"  # cut | error
    resolutions: list[float] = field(default_factory=lambda: [1.0])  # C: a hop of 10 ms * C, drawn a clip and epoch
    poolings: list[int] = field(default_factory=lambda: [1])  # frames averaged into one, drawn a clip and epoch
    local_count: int = 0  # further, shorter crops a clip (ASiT's multi-crop: 4)
    local_frames: int = 192  # their length in frames, less than `frames`
    roll: float = 0.0  # probability that a waveform is rolled, end to beginning, before it is cropped (ASiT: 0.5)


@dataclass(frozen=True)
class Step:
    """A global step is `packs` packs; a pack holds exactly `clips` clips, or as many as fit into `tokens`."""

    packs: int = 32
    clips: int | None = None
    tokens: int | None = None
    max_clips: int = 64  # bound on clips a pack when packing by tokens


@dataclass(frozen=True)
class PlanOptions:
    packer: str = "exact"  # exact (subset-sum fill with lookahead) | next_fit (ElasticAST, in order)
    lookahead: int = 64  # clips the exact packer may look ahead
    window: int = 16384  # clips shuffled together within a lane
    shuffle: bool = True
    locality: str = "none"  # none | node
    draws: int | None = None  # clips drawn an epoch; None: as many as there are
    weights: str = ""  # empty: none | balanced (over labels, with replacement) | a file of keys and weights


@dataclass(frozen=True)
class Loader:
    workers: int = 2
    packs_per_forward: int = 1  # m: packs joined in one forward of training; memory only, never results
    prefetch: int = 2  # steps ahead, a worker
    max_holes: float = 0.01  # share of clips that may turn out unusable before the run stops


@dataclass(frozen=True)
class Optim:
    name: str = "adamw"  # adamw | adam (weight decay as part of the gradient)
    lr: float = 5e-4
    lr_base_batch: int = 256  # lr is for so many clips a global step, and follows their number; 0: lr as it stands
    lr_rule: str = "linear"  # in proportion to that number | sqrt (to its square root)
    schedule: str = "cosine"  # after the warm-up: cosine (to lr_end) | gamma (epoch by epoch, as AST)
    lr_end: float = 1e-6
    gamma: float = 0.5  # schedule: gamma: what the rate is multiplied with
    gamma_from: int = 1  # after so many epochs
    gamma_every: int = 1  # and then after every so many
    warmup_epochs: float = 10.0
    warmup_steps: int | None = None  # takes the place of warmup_epochs
    warmup_start: float = 0.0  # share of the peak that the warm-up begins with
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4  # cosine from weight_decay; none on biases and 1-D parameters
    layer_decay: float = 1.0
    head_scale: float = 1.0  # of an `encoder` with a head: the head learns so many times as fast
    clip: float = 3.0  # global gradient norm; 0: no clipping
    clip_each: bool = False  # the norm of each tensor by itself (the published ASiT code); for engine: oss


@dataclass(frozen=True)
class Compute:
    """How the blocks are computed: memory and time, not what comes out."""

    activations: str = "keep"  # keep | recompute (in the backward, from each block's input) | offload (that input too)
    compile: bool = False  # by torch.compile; rounds in other places


@dataclass(frozen=True)
class Guard:
    """What is looked at so that a run does not go wrong in silence. Numbers that are not finite are always refused."""

    policy: str = "flag"  # of a leap or a collapse: flag | stop | back (to the last checkpoint, leaving steps out)
    leap: float = 10.0  # a loss so many spreads above the median of the last 64 is a leap; 0: none is
    leave_out: int = 10  # steps left out after going back: those that end with the leap, or a collapse's first
    collapse_steps: int = 1000  # steps in a row that the objective calls collapsed; 0: not looked at
    drift_steps: int = 100  # every so many steps the ranks compare what they must have alike; 0: never


@dataclass(frozen=True)
class Checkpoint:
    every_epochs: float = 1.0
    every_minutes: float = 15.0  # whichever comes first
    keep: int = 3  # the newest
    keep_every: int = 0  # and for good those after every so many epochs, and after the last; 0: none


@dataclass(frozen=True)
class Track:
    mlflow: str = "auto"  # auto: sqlite in the runs folder | a server's URI | off
    experiment: str = "gamut"
    picture_epochs: float = 10.0  # pictures each so many epochs, and after the last; 0: none
    log_steps: int = 1


@dataclass(frozen=True)
class Probe:
    """What the teacher knows of a labelled set while it is pretrained: k-NN and logistic regression on whole clips."""

    every_epochs: float = 10.0  # besides before the first and after the last; 0: none
    data: str = ""  # a labelled shard set; empty: what is pretrained on
    # Subsets, written as `subset` is: train on one and score the other. Both empty: cross-validation over `folds`, of
    # `subset` where it is what is pretrained on, else of the whole set.
    train: dict[str, Any] = field(default_factory=dict)
    test: dict[str, Any] = field(default_factory=dict)
    folds: str = "fold"  # a column of the index
    clips: int = 5000  # the most to train on, and to score; of more clips so many are chosen by hash
    max_seconds: float = 30.0  # a longer clip is cut there
    neighbours: int = 20  # k
    rows: bool = False  # also the tokens' mean over time alone: 8 rows of frequency side by side, 8 x dim numbers


@dataclass(frozen=True)
class Run:
    folder: str = "runs"
    name: str = ""  # empty: the recipe's name
    threads: int = 0  # torch threads a rank on CPU; 0: cores / ranks on this machine
    deterministic: bool = True  # always so on CPU
    timeout_seconds: float = 600.0  # a rank silent for so long dumps its stacks and aborts


@dataclass(frozen=True)
class Asit:
    """The ASiT objective (Atito et al., section III)."""

    mask_target: float = 0.70  # share of a view's pixels to hide; 0: no masks
    mask_target_least: float | None = (
        None  # a share for each view from U(mask_target_least, mask_target); None: no draw
    )
    mask_shape: str = "blocks"  # blocks | time (whole time rows) | frequency (whole frequency columns)
    mask_aligned: bool = False  # to the patch grid
    mask_time_share: float = 0.3  # blocks up to 0.3 T high
    mask_frequency_share: float = 0.3  # and 0.3 F wide
    mask_fill: str = "zeros"  # zeros | noise, N(0, 0.5^2) | clip (what another clip of the pack has there)
    mask_copied: float = 0.0  # share of clips that instead have `mask_copied_share` copied from another clip
    mask_copied_share: float = 0.3
    hidden: int = 2048  # width of the projection and reconstruction MLPs
    bottleneck: int = 256
    prototypes: int = 8192  # K: outputs for class tokens, or the pooled tokens in their place
    prototypes_data: int | None = None  # C: outputs for data tokens; None: K. Another number needs heads of their own
    heads: str = "shared"  # class and data tokens: shared | partly (an output layer each) | separate
    gain: str = "fixed"  # of the output layer's weight norm: fixed (at 1) | trained
    freeze_output_epochs: int = 0  # epochs before the output layers begin to move
    reconstruction_hidden: int | None = None  # None: hidden
    reconstruction_bottleneck: int | None = None  # None: bottleneck
    reconstruction_last_gelu: bool = False  # a GELU after the bottleneck, too
    weight_reconstruction: float = 1.0
    weight_local: float = 1.0
    weight_global: float = 1.0
    weight_koleo: float = 0.0  # beyond the paper: spreads the clips of a pack apart (Sablayrolles et al. 2019, DINOv2)
    koleo_on: str = "rows"  # rows (each clip's mean over time of every row of patches) | pooled (CLS or pooled token)
    local_on: str = "masked"  # masked (wholly or in part) | all
    teacher_temperature: float = 0.07
    teacher_temperature_start: float | None = None  # from here to teacher_temperature, linearly, over
    teacher_temperature_epochs: float = 0.0  # so many epochs
    student_temperature: float = 0.1
    centre_momentum: float = 0.9
    teacher_momentum: float = 0.996  # cosine to 1 over the run


@dataclass(frozen=True)
class Augment:
    """Training-time augmentation of fine-tuning: SpecAugment, mixup, random noise, token dropout."""

    time_mask: int = 0  # frames, width U[0, time_mask)
    time_scale: str = "none"  # none | length (time_mask * frames / 1,024) | resolution (time_mask / C)
    frequency_mask: int = 0  # bins
    mask_fill: str = "zero"  # zero, before normalisation | mean
    noise: bool = False  # AST's random noise and roll
    mixup: float = 0.0  # rate: the probability that a clip is mixed with another
    mixup_beta: int = 10  # at a weight lambda ~ Beta(mixup_beta, mixup_beta)
    drop_tokens: float = 0.0  # share of each clip's patches that training leaves out (published ElasticAST: 0.1)


@dataclass(frozen=True)
class Folds:
    """What is trained on and what is scored, by an index column: its values (folds), or its names (train, test).

    Each entry of `test` is one round: train on `train`, or on all that is in neither of the others.
    """

    column: str = "fold"
    test: list[list[int | str]] = field(default_factory=lambda: [[1], [2], [3], [4], [5]])
    train: list[int | str] | None = None  # None: all that is not in the round's test and validation folds
    # The epoch that does best on these is the one that the test folds judge; None: the last epoch is.
    validation: list[int | str] | None = None


@dataclass(frozen=True)
class Finetune:
    loss: str = "ce"  # ce | bce
    metric: str = "auto"  # auto: accuracy with ce, mAP with bce | accuracy | mAP
    label_smoothing: float = 0.0
    # The weights that are scored and kept are the mean of those after every epoch from this one on (1: the first);
    # None: those of the epoch itself.
    average_from: int | None = None
    take_head: bool = False  # `init` gives the classifier, too: of the same classes, in the same order
    evaluate_epochs: float = 10.0  # scored after each so many epochs, and after the last; 0: after the last alone
    seeds: int = 1  # repeats with seed, seed + 1, ...


@dataclass(frozen=True)
class Extract:
    """What of a frozen encoder is cached (`gamut.features`); `init` names its weights, `precision` how it computes."""

    # Of a file of torchaudio's weights: its name of the model, such as hubert_xlarge. The others say it themselves.
    architecture: str = ""
    seconds: float = 10.0  # the window: so much of a clip, from its beginning; a shorter clip is followed by silence
    pool: int = 20  # steps of the encoder averaged into one; 1: all are kept
    blocks: list[int] = field(default_factory=list)  # whose outputs are kept, from 0; none: those of all blocks
    dtype: str = "fp16"  # as it is stored: fp16 | fp32 | int8 (with a scale a channel)
    batch: int = 16  # clips a forward; divides 128
    folder: str = "features"  # caches lie in FOLDER/NAME/FINGERPRINT


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. `stage` names the objective; sections that a stage does not use keep their defaults."""

    stage: str = "pretrain"
    # What an index fingerprint holds to; the rest is where it lies.
    data: str = key("", "a shard set: a folder, or http(s)://, s3:// or pipe:", may_change=True)
    dataset: str = key("", "which converter makes it, for the message when it is missing", may_change=True)
    # Where the weights start from: a run or checkpoint folder, a file of weights, a ViT of images (timm, transformers),
    # public weights of ElasticAST, AST, SSAST or ASiT.
    init: str = ""
    # A cache of features, to train a `head` on in place of sound (python -m gamut.features); with it `init` is a head.
    features: str = ""
    # A Whisper (a folder of transformers, or an OpenAI .pt) to be fine-tuned with a `head`; `init` is a head here too.
    encoder: str = ""
    mixture: dict[str, float] = field(default_factory=dict)  # folder of a set, inside `data` -> proportion of the draws
    # Which clips: {fold: [1, 2], label: [dog], keys: FILE, per_class: 10, share: 0.1, seed: 0}; any other name is a
    # column of the index, with the values (or names of values) to keep; with a `?` at its end: where there is one.
    subset: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    epochs: int = 40
    precision: str = "fp32"  # fp32 | bf16 | fp16 (of a frozen encoder only)
    engine: str = "deepspeed"  # deepspeed (ZeRO, as the section `deepspeed` says) | oss (fairscale's OSS under DDP)
    front: FrontEnd = section(FrontEnd)
    model: Model = section(Model)
    head: Head = section(Head)
    views: Views = section(Views)
    step: Step = section(Step)
    plan: PlanOptions = section(PlanOptions)
    loader: Loader = section(Loader, may_change=True)
    remote: Remote = section(Remote, may_change=True)
    optim: Optim = section(Optim)
    asit: Asit = section(Asit)
    augment: Augment = section(Augment)
    folds: Folds = section(Folds)
    finetune: Finetune = section(Finetune)
    extract: Extract = section(Extract)
    compute: Compute = section(Compute, may_change=True)
    guard: Guard = section(Guard, may_change=True)
    checkpoint: Checkpoint = section(Checkpoint, may_change=True)
    track: Track = section(Track, may_change=True)
    probe: Probe = section(Probe, may_change=True)
    run: Run = section(Run, may_change=True)
    deepspeed: dict[str, Any] = key(
        {"zero_optimization": {"stage": 1}},
        "DeepSpeed's own settings, by its names; what the recipe says elsewhere is filled in",
        may_change=DEEPSPEED_MAY_CHANGE,
    )
