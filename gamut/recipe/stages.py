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
        0.70, "share of a view's pixels to mask; 0: no masks", between(0, 0.99)
    )  # a larger share would take many thousands of blocks
    mask_target_least: float | None = key(
        None, "draw the share of each view from U(mask_target_least, mask_target); null: do not draw", between(0, 0.99)
    )
    mask_shape: str = key(
        "blocks",
        "blocks, inverse (all but blocks is hidden), time (all bins of whole frames), or frequency (all frames of "
        "whole bins)",
        one_of("blocks", "inverse", "time", "frequency"),
    )
    mask_aligned: bool = key(False, "align masks to the patch grid")
    mask_time_share: float = key(0.3, "largest duration of a block, as a share of the frames", between(0.01, 1))
    mask_frequency_share: float = key(0.3, "largest height of a block, as a share of the mel bins", between(0.01, 1))
    mask_fill: str = key(
        "zeros",
        "what masks are filled with: zeros, noise (N(0, 0.5^2)), or clip (the same region of another clip of the pack)",
        one_of("zeros", "noise", "clip"),
    )
    mask_copied: float = key(
        0.0, "share of views that, instead of masks, get `mask_copied_share` copied from another clip", between(0, 1)
    )
    mask_copied_share: float = key(0.3, "share of pixels copied into such a view", between(0, 0.99))
    encode: str = key(
        "all",
        "not in the paper: tokens of a masked view that the student encodes: all, or the visible ones (not wholly "
        "hidden), as many of every view of a length",
        one_of("all", "visible"),
    )
    visible: float | None = key(
        None,
        "encode visible: share of a view's patches that is encoded. Where masks leave more, further patches are hidden "
        "wholly; where they leave fewer, hidden ones are shown. null: 1 - `mask_target`, which is right for masks of "
        "whole patches",
        between(0.01, 1),
    )
    clones: int = key(
        1,
        "not in the paper: masks of each view, which the student sees in turn as views of their own, while the teacher "
        "hears it once (data2vec 2.0, EAT: 16)",
        PLAN["clones"],
    )
    mixtures: float = key(
        0.0,
        "not in the paper: share of clips whose views the student hears added up with those of another clip at equal "
        "power, while the teacher hears both apart; targets hold both (SSLAM)",
        PLAN["mixtures"],
    )
    predictor: str = key(
        "none",
        "encode visible: what gives tokens for hidden patches, for reconstruction and the local loss: none (these are "
        "then over visible patches that are masked in part), cross (hidden patches attend to their view's encoded "
        "tokens), or blocks (over encoded and hidden patches together)",
        one_of("none", "cross", "blocks"),
    )
    predictor_dim: int | None = key(
        None, "its width, a multiple of 4 and of `model.heads`; null: half of `model.dim`", at_least(4)
    )
    predictor_depth: int = key(2, "its blocks", at_least(1))
    targets: str = key(
        "prototypes",
        "of the local loss: prototypes (the teacher's distribution; ASiT), or features (mean square difference to the "
        "mean of its last blocks, normalised; data2vec, EAT)",
        one_of("prototypes", "features"),
    )
    target_blocks: int | None = key(
        None, "targets features: so many last blocks are averaged, of fewer all; null: all", at_least(1)
    )
    hidden: int = key(2048, "width of the projection and reconstruction MLPs", at_least(1))
    bottleneck: int = key(256, "width before the output layer", at_least(1))
    prototypes: int = key(8192, "K: outputs for class tokens (or pooled tokens)", at_least(2))
    prototypes_data: int | None = key(
        None, "C: outputs for data tokens; null: K. Another number needs `heads` partly or separate", at_least(2)
    )
    heads: str = key(
        "shared",
        "heads for class and data tokens: shared, partly (with an output layer each), or separate",
        one_of("shared", "partly", "separate"),
    )
    gain: str = key(
        "fixed", "gain of the weight-normalised output layer: fixed (at 1), or trained", one_of("fixed", "trained")
    )
    freeze_output_epochs: int = key(0, "time for which the output layers stay frozen", at_least(0), unit="epochs")
    reconstruction_hidden: int | None = key(None, "null: `hidden`", at_least(1))
    reconstruction_bottleneck: int | None = key(None, "null: `bottleneck`", at_least(1))
    reconstruction_last_gelu: bool = key(False, "add a GELU after the bottleneck")
    weight_reconstruction: float = key(1.0, "weight of the reconstruction of masked pixels", at_least(0))
    weight_local: float = key(1.0, "weight of the loss on data tokens", at_least(0))
    weight_global: float = key(1.0, "weight of the loss on class tokens, across views", at_least(0))
    weight_koleo: float = key(
        0.0,
        "not in the paper: weight of KoLeo, which spreads the clips of a pack (Sablayrolles et al. 2019, DINOv2)",
        at_least(0),
    )
    koleo_on: str = key(
        "rows",
        "rows (each clip's mean over time of every band of patches), or pooled (CLS or pooled token)",
        one_of("rows", "pooled"),
    )
    local_on: str = key(
        "masked", "data tokens in the local loss: masked (entirely or in part), or all", one_of("masked", "all")
    )
    teacher_temperature: float = key(0.07, "temperature of the teacher's softmax", above(0))
    teacher_temperature_start: float | None = key(
        None,
        "initial temperature; it changes linearly to `teacher_temperature` over `teacher_temperature_epochs`",
        above(0),
    )
    teacher_temperature_epochs: float = key(0.0, "duration of that change", at_least(0), unit="epochs")
    student_temperature: float = key(0.1, "temperature of the student's softmax", above(0))
    centre_momentum: float = key(
        0.9, "momentum of the means that are subtracted from the teacher's outputs", between(0, 1)
    )
    teacher_momentum: float = key(
        0.996, "share of the teacher that is kept each step; rises to 1 by a cosine over the run", between(0, 1)
    )

    @property
    def unseen(self) -> float:
        """The share of a view's patches that the student does not encode."""
        if self.encode == "all":
            return 0.0
        return self.mask_target if self.visible is None else 1.0 - self.visible


@dataclass(frozen=True)
class Probe:
    """What the teacher knows of a labelled set while it is pretrained: k-NN and logistic regression on whole clips."""

    every_epochs: float = key(
        10.0,
        "epochs between probes, which also run before the first and after the last epoch; 0: none",
        at_least(0),
        unit="epochs",
    )
    data: str = key("", "a labelled shard set; empty: the set of the pretraining")
    train: dict[str, Any] = key(
        {},
        "the subset to train on, written like `subset`; set together with `test`. Both empty: cross-validation over "
        "`folds`, of the pretraining's `subset` if `data` is empty, else of the whole set",
    )
    test: dict[str, Any] = key({}, "the subset to score")
    folds: str = key("fold", "column of the index to cross-validate over")
    clips: int = key(5000, "at most so many clips to train on, and to score, chosen by hash", at_least(2))
    max_seconds: float = key(30.0, "longer clips are cut to this", at_least(0.025), unit="s")
    neighbours: int = key(20, "k of the k-NN", at_least(1))
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
    mask_fill: str = key("zero", "zero (before normalisation), or mean", one_of("zero", "mean"))
    noise: bool = key(False, "AST's random noise and roll")
    mixup: float = key(0.0, "probability that a clip is mixed with another", PLAN["mixup"])
    mixup_beta: int = key(10, "the weight is lambda ~ Beta(mixup_beta, mixup_beta)", PLAN["mixup_beta"])
    drop_tokens: float = key(
        0.0,
        "share of each clip's patches that are dropped in training (published ElasticAST: 0.1)",
        PLAN["drop_tokens"],
    )


@dataclass(frozen=True)
class Folds:
    """What is trained on and what is scored, by an index column: its values (folds), or its names (train, test).

    Each entry of `test` is one round: train on `train`, or on all that is in neither of the others.
    """

    column: str = key("fold", "column of the index")
    test: list[list[int | str]] = key([[1], [2], [3], [4], [5]], "the folds to score, one round for each list")
    train: list[int | str] | None = key(
        None, "folds to train on; null: all except the round's test and validation folds"
    )
    validation: list[int | str] | None = key(
        None, "folds that choose the epoch whose weights are scored on the test folds; null: the last epoch"
    )


@dataclass(frozen=True)
class Finetune:
    """The loss of fine-tuning, and what is scored and kept."""

    loss: str = key("ce", "cross-entropy of one label a clip, or bce: binary, of several", one_of("ce", "bce"))
    metric: str = key(
        "auto", "auto: accuracy with ce, mAP with bce; plugins may register others", one_of("auto", registry=METRICS)
    )
    label_smoothing: float = key(0.0, "share of a target spread over all classes", between(0, 0.999))
    weight_frames: float = key(
        1.0,
        "model.pooling frames: weight of the loss on the frames of clips with events; 0: their times are not used, and "
        "they count by their labels as other clips do",
        at_least(0),
    )
    weight_clips: float = key(
        1.0, "model.pooling frames: weight of the loss on clips that have labels without times", at_least(0)
    )
    median_frames: int = key(
        1,
        "model.pooling frames: an odd number of frames; before events are read off, each frame's probability becomes "
        "the median of so many around it",
        at_least(1),
    )
    average_from: int | None = key(
        None,
        "score and keep the mean of the weights after every epoch from this one on (1: the first); null: those of the "
        "epoch itself",
        at_least(1),
    )
    take_head: bool = key(
        False, "also take the classifier from `init`, which must have the same classes in the same order"
    )
    freeze: bool = key(
        False,
        "the backbone stays what `init` made it and only the classifier learns, with attention pooling where there is "
        "some (linear probing): best with few labels, and a third of the work",
    )
    evaluate_epochs: float = key(
        10.0,
        "epochs between scores, which are also computed after the last; 0: only after the last",
        at_least(0),
        unit="epochs",
    )
    seeds: int = key(1, "number of repetitions, with seed, seed + 1, ...", at_least(1))


@dataclass(frozen=True)
class Head:
    """A head on all layers of an encoder (Whisper-AT): for runs with `features` or an `encoder`."""

    kind: str = key(
        "tl_tr",
        "last_mlp, wa_mlp, wa_tr, or tl_tr (a transformer over time in each layer, then one over layers)",
        one_of("last_mlp", "wa_mlp", "wa_tr", "tl_tr"),
    )
    dim: int | None = key(
        None, "map the features to this many dimensions first (512: TL-Tr-512); null: keep theirs", at_least(1)
    )
    time_heads: int = key(1, "attention heads of the block over time", at_least(1))
    layer_heads: int = key(8, "attention heads of the block over layers", at_least(1))
    # For an `encoder` that is fine-tuned; cached features were cut and averaged when they were extracted.
    seconds: float = key(
        10.0,
        "with an `encoder`: length of the window, which `views.frames` must just cover",
        between(0.1, 30),
        unit="s",
    )
    pool: int = key(20, "with an `encoder`: number of its steps averaged into one", at_least(1))


@dataclass(frozen=True)
class Extract:
    """What is cached of a frozen encoder (`gamut features`); `init` names its weights, `precision` its type."""

    architecture: str = key("", "torchaudio's name of the model, such as hubert_xlarge; only for files of its weights")
    seconds: float = key(
        10.0,
        "length of the window, from the beginning of a clip; shorter clips are filled up",
        at_least(0.1),
        unit="s",
    )
    pad_with: str = key(
        "silence",
        "what fills a window up: silence in the waveform, or, of a Whisper, zero: its log-mel is 0.0 there, as in the "
        "published features of Whisper-AT",
        one_of("silence", "zero"),
    )
    pool: int = key(20, "number of the encoder's steps averaged into one; 1: keep all", at_least(1))
    blocks: list[int] = key([], "blocks whose outputs are kept, from 0, ascending; empty: all blocks", at_least(0))
    dtype: str = key(
        "fp16", "type in the cache: fp16, fp32, or int8 (with one scale a channel)", one_of("fp16", "fp32", "int8")
    )
    batch: int = key(16, "clips a forward; must divide 128", at_least(1))
    folder: str = key("features", "a cache is in FOLDER/NAME/FINGERPRINT")
