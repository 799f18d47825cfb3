"""The sections of a recipe that a single stage reads: pretraining, fine-tuning, or extracting features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gamut.evaluate import METRICS
from gamut.numbers import BINS
from gamut.plan.policy import Policy
from gamut.settings import above, at_least, between, bounds_of, key, one_of

PLAN = bounds_of(Policy)


@dataclass(frozen=True)
class Asit:
    """The ASiT objective (Atito et al., section III)."""

    mask_target: float = key(
        0.70, "share of a view's pixels to hide; 0: no masks", between(0, 0.99)
    )  # more takes many thousands of blocks
    mask_target_least: float | None = key(
        None, "a share for each view from U(mask_target_least, mask_target); null: no draw", between(0, 0.99)
    )
    mask_shape: str = key(
        "blocks",
        "blocks, time (all bins of whole frames), or frequency (all frames of whole bins)",
        one_of("blocks", "time", "frequency"),
    )
    mask_aligned: bool = key(False, "to the patch grid")
    mask_time_share: float = key(0.3, "blocks up to this share of the frames", between(0.01, 1))
    mask_frequency_share: float = key(0.3, "and up to this share of the mel bins", between(0.01, 1))
    mask_fill: str = key(
        "zeros",
        "zeros, noise (N(0, 0.5^2)), or clip (what another clip of the pack has there)",
        one_of("zeros", "noise", "clip"),
    )
    mask_copied: float = key(
        0.0, "share of clips that instead have `mask_copied_share` copied from another clip", between(0, 1)
    )
    mask_copied_share: float = key(0.3, "share of such a clip's pixels", between(0, 0.99))
    hidden: int = key(2048, "width of the projection and reconstruction MLPs", at_least(1))
    bottleneck: int = key(256, "width before the output layer", at_least(1))
    prototypes: int = key(8192, "K: outputs for class tokens, or the pooled tokens in their place", at_least(2))
    prototypes_data: int | None = key(
        None, "C: outputs for data tokens; null: K. Another number needs heads of their own", at_least(2)
    )
    heads: str = key(
        "shared",
        "of class and data tokens: shared, partly (an output layer each), or separate",
        one_of("shared", "partly", "separate"),
    )
    gain: str = key("fixed", "of the output layer's weight norm: fixed (at 1), or trained", one_of("fixed", "trained"))
    freeze_output_epochs: int = key(0, "before the output layers begin to move", at_least(0), unit="epochs")
    reconstruction_hidden: int | None = key(None, "null: `hidden`", at_least(1))
    reconstruction_bottleneck: int | None = key(None, "null: `bottleneck`", at_least(1))
    reconstruction_last_gelu: bool = key(False, "a GELU after the bottleneck, too")
    weight_reconstruction: float = key(1.0, "of the reconstruction of hidden pixels", at_least(0))
    weight_local: float = key(1.0, "of the teacher's outputs for data tokens", at_least(0))
    weight_global: float = key(1.0, "of its outputs for class tokens, across views", at_least(0))
    weight_koleo: float = key(
        0.0, "beyond the paper: spreads the clips of a pack apart (Sablayrolles et al. 2019, DINOv2)", at_least(0)
    )
    koleo_on: str = key(
        "rows",
        "rows (each clip's mean over time of every band of patches), or pooled (CLS or pooled token)",
        one_of("rows", "pooled"),
    )
    local_on: str = key(
        "masked", "data tokens of the local loss: masked (wholly or in part), or all", one_of("masked", "all")
    )
    teacher_temperature: float = key(0.07, "of the teacher's softmax", above(0))
    teacher_temperature_start: float | None = key(
        None, "from here to `teacher_temperature`, linearly, over `teacher_temperature_epochs`", above(0)
    )
    teacher_temperature_epochs: float = key(0.0, "how long that takes", at_least(0), unit="epochs")
    student_temperature: float = key(0.1, "of the student's softmax", above(0))
    centre_momentum: float = key(0.9, "of the means that are subtracted from the teacher's outputs", between(0, 1))
    teacher_momentum: float = key(
        0.996, "share that the teacher keeps each step; by a cosine to 1 over the run", between(0, 1)
    )


@dataclass(frozen=True)
class Probe:
    """What the teacher knows of a labelled set while it is pretrained: k-NN and logistic regression on whole clips."""

    every_epochs: float = key(10.0, "besides before the first and after the last; 0: none", at_least(0), unit="epochs")
    data: str = key("", "a labelled shard set; empty: what is pretrained on")
    train: dict[str, Any] = key(
        {},
        "a subset, written as `subset` is, to train on; with `test`. Both empty: cross-validation over `folds`, of "
        "`subset` where it is what is pretrained on, else of the whole set",
    )
    test: dict[str, Any] = key({}, "the subset to score")
    folds: str = key("fold", "a column of the index")
    clips: int = key(5000, "the most to train on, and to score; of more clips so many are chosen by hash", at_least(2))
    max_seconds: float = key(30.0, "a longer clip is cut there", at_least(0.025), unit="s")
    neighbours: int = key(20, "k", at_least(1))
    rows: bool = key(False, "also the tokens' mean over time alone: 8 bands of frequency side by side, 8 x dim numbers")


@dataclass(frozen=True)
class Augment:
    """Training-time augmentation of fine-tuning: SpecAugment, mixup, random noise, token dropout."""

    time_mask: int = key(0, "width drawn from U[0, time_mask)", at_least(0), unit="frames")
    time_scale: str = key(
        "none",
        "none, length (time_mask * frames / 1,024), or resolution (time_mask / C)",
        one_of("none", "length", "resolution"),
    )
    frequency_mask: int = key(0, "width drawn from U[0, frequency_mask)", between(0, BINS), unit="mel bins")
    mask_fill: str = key("zero", "zero, before normalisation, or the mean", one_of("zero", "mean"))
    noise: bool = key(False, "AST's random noise and roll")
    mixup: float = key(0.0, "rate: the probability that a clip is mixed with another", PLAN["mixup"])
    mixup_beta: int = key(10, "at a weight lambda ~ Beta(mixup_beta, mixup_beta)", PLAN["mixup_beta"])
    drop_tokens: float = key(
        0.0, "share of each clip's patches that training leaves out (published ElasticAST: 0.1)", PLAN["drop_tokens"]
    )


@dataclass(frozen=True)
class Folds:
    """What is trained on and what is scored, by an index column: its values (folds), or its names (train, test).

    Each entry of `test` is one round: train on `train`, or on all that is in neither of the others.
    """

    column: str = key("fold", "of the index")
    test: list[list[int | str]] = key([[1], [2], [3], [4], [5]], "a round each: what is scored")
    train: list[int | str] | None = key(None, "null: all that is not in the round's test and validation folds")
    validation: list[int | str] | None = key(
        None, "the epoch that does best on these is selected, and scored on the test folds; null: the last epoch is"
    )


@dataclass(frozen=True)
class Finetune:
    """The loss of fine-tuning, and what is scored and kept."""

    loss: str = key("ce", "cross-entropy of one label a clip, or bce: binary, of several", one_of("ce", "bce"))
    metric: str = key(
        "auto", "auto: accuracy with ce, mAP with bce; a plugin may register others", one_of("auto", registry=METRICS)
    )
    label_smoothing: float = key(0.0, "share of a target that is spread over all classes", between(0, 0.999))
    average_from: int | None = key(
        None,
        "the weights that are scored and kept are the mean of those after every epoch from this one on (1: the first); "
        "null: those of the epoch itself",
        at_least(1),
    )
    take_head: bool = key(False, "`init` gives the classifier, too: of the same classes, in the same order")
    evaluate_epochs: float = key(
        10.0,
        "scored after each so many epochs, and after the last; 0: after the last alone",
        at_least(0),
        unit="epochs",
    )
    seeds: int = key(1, "repeats with seed, seed + 1, ...", at_least(1))


@dataclass(frozen=True)
class Head:
    """A head on all layers of an encoder (Whisper-AT): for runs with `features` or an `encoder`."""

    kind: str = key(
        "tl_tr",
        "last_mlp, wa_mlp, wa_tr, or tl_tr (a transformer over time in each layer, then one over layers)",
        one_of("last_mlp", "wa_mlp", "wa_tr", "tl_tr"),
    )
    dim: int | None = key(
        None, "the features are mapped to so many dimensions first (512: TL-Tr-512); null: their own", at_least(1)
    )
    time_heads: int = key(1, "attention heads of the block over time", at_least(1))
    layer_heads: int = key(8, "and of the block over layers", at_least(1))
    # Of an `encoder` that is fine-tuned; cached features have been cut and averaged when they were made.
    seconds: float = key(
        10.0, "with an `encoder`: the window, which `views.frames` must just cover", between(0.1, 30), unit="s"
    )
    pool: int = key(20, "with an `encoder`: steps of it averaged into one", at_least(1))


@dataclass(frozen=True)
class Extract:
    """What of a frozen encoder is cached (`gamut features`); `init` names its weights, `precision` how it computes."""

    architecture: str = key(
        "", "torchaudio's name of the model, such as hubert_xlarge, for a file of its weights; others say it themselves"
    )
    seconds: float = key(
        10.0,
        "the window: so much of a clip, from its beginning; a shorter clip is followed by silence",
        at_least(0.1),
        unit="s",
    )
    pool: int = key(20, "steps of the encoder averaged into one; 1: all are kept", at_least(1))
    blocks: list[int] = key([], "whose outputs are kept, from 0, ascending; none: those of all blocks", at_least(0))
    dtype: str = key(
        "fp16", "as it is stored: fp16, fp32, or int8 (with a scale a channel)", one_of("fp16", "fp32", "int8")
    )
    batch: int = key(16, "clips a forward; divides 128", at_least(1))
    folder: str = key("features", "caches lie in FOLDER/NAME/FINGERPRINT")
