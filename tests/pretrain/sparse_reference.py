"""ASiT with hidden patches, written out: a loop over masks, clips and views, each padded to the longest, with attention
masked densely, in float64, by parameters and their names alone. What is given are clean patches and masks; of mixtures
of two clips, the patches of each."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from gamut.recipe import schema
from pretrain.views import MaskedBatch

Weights = Mapping[str, torch.Tensor]


def linear(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, there: torch.Tensor) -> torch.Tensor:
    """there: bool [keys]."""
    out = []
    for one_q, one_k, one_v in zip(*(x.chunk(heads, -1) for x in (q, k, v))):
        scores = (one_q @ one_k.T / math.sqrt(one_q.shape[-1])).masked_fill(~there, -torch.inf)
        out.append(scores.softmax(-1) @ one_v)
    return torch.cat(out, -1)


def mlp(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    return linear(F.gelu(linear(x, weights, f"{name}.fc1")), weights, f"{name}.fc2")


def block(x: torch.Tensor, there: torch.Tensor, weights: Weights, name: str, heads: int) -> torch.Tensor:
    q, k, v = linear(norm(x, weights, f"{name}.norm1"), weights, f"{name}.attn.qkv").chunk(3, -1)
    x = x + linear(attend(q, k, v, heads, there), weights, f"{name}.attn.proj")
    return x + mlp(norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp")


def three_layers(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    x = F.gelu(linear(x, weights, f"{name}.0"))
    return linear(F.gelu(linear(x, weights, f"{name}.2")), weights, f"{name}.4")


def logits(x: torch.Tensor, weights: Weights, of: str) -> torch.Tensor:
    """of: "" class tokens, "_data" data tokens."""
    own = f"projection{of}"
    whole = own if f"{own}.mlp.0.weight" in weights else "projection"
    last = own if f"{own}.weight" in weights else f"{whole}.last_layer"
    return F.normalize(three_layers(x, weights, f"{whole}.mlp"), dim=-1) @ F.normalize(weights[f"{last}.weight"]).T


class One:
    """A view: its patches [P, 256], which of them are there to be attended to, and the tokens that come of it."""

    def __init__(self, model: schema.Model, weights: Weights, pixels: torch.Tensor, seen: torch.Tensor) -> None:
        self.weights, self.heads, self.cls = weights, model.heads, model.pooling == "cls"
        place = torch.arange(len(pixels))
        if model.positions == "learned":
            positions = weights["backbone.pos_embed"][0]
            own = positions[int(self.cls) :][place]
        else:
            own = weights["backbone.pos_embed_time"][place // 8] + weights["backbone.pos_embed_freq"][place % 8]
        x = linear(pixels, weights, "backbone.patch_embed.proj") + own
        if self.cls:
            first = weights["backbone.cls_token"][0]
            x = torch.cat([first + positions[:1] if model.positions == "learned" else first, x])
        self.there = torch.cat([torch.ones(int(self.cls), dtype=torch.bool), seen])
        self.blocks = []
        for number in range(model.depth):
            x = block(x, self.there, weights, f"backbone.blocks.{number}", model.heads)
            self.blocks.append(x)
        self.tokens = norm(x, weights, "backbone.norm")
        self.seen = seen

    @property
    def data(self) -> torch.Tensor:
        return self.tokens[int(self.cls) :]

    def pool(self, pooling: str) -> torch.Tensor:
        if pooling == "cls":
            return self.tokens[0]
        if pooling == "mean":
            return self.data[self.seen].mean(0)
        q = linear(self.weights["backbone.attn_pool.query"], self.weights, "backbone.attn_pool.to_q")
        k, v = linear(self.tokens, self.weights, "backbone.attn_pool.to_kv").chunk(2, -1)
        return linear(attend(q, k, v, 2, self.there), self.weights, "backbone.attn_pool.proj")[0]

    def rows(self) -> torch.Tensor:
        bands = []
        for band in range(8):
            own = self.data[band::8][self.seen[band::8]]
            bands.append(own.mean(0) if len(own) else self.data.new_zeros(self.data.shape[1]))
        return torch.cat(bands)

    def predicted(self, asit: schema.Asit, patches: int) -> torch.Tensor:
        """The tokens [P, D] of all places: the encoder's where it had a patch, else the predictor's."""
        weights, place = self.weights, torch.arange(len(self.data))
        dim = len(weights["predictor.mask_token"][0])
        rate = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) * 4 / dim)
        band, column = (place % 8)[:, None] * rate, (place // 8)[:, None] * rate
        # The table is float32, as the model has it.
        where = torch.cat([band.sin(), band.cos(), column.sin(), column.cos()], 1).float().double()
        entered = linear(self.tokens, weights, "predictor.enter")
        entered = torch.cat([entered[: int(self.cls)], entered[int(self.cls) :] + where])
        x = weights["predictor.mask_token"] + where
        padding = place >= patches
        if asit.predictor == "blocks":
            x = torch.where(self.seen[:, None], entered[int(self.cls) :], x)
            x = torch.cat([entered[: int(self.cls)], x])
            there = torch.cat([self.there[: int(self.cls)], ~padding])
            for number in range(asit.predictor_depth):
                x = block(x, there, weights, f"predictor.blocks.{number}", self.heads)
            x = x[int(self.cls) :]
        else:
            for number in range(asit.predictor_depth):
                name = f"predictor.blocks.{number}"
                q = linear(norm(x, weights, f"{name}.norm1"), weights, f"{name}.to_q")
                k, v = linear(norm(entered, weights, f"{name}.norm_seen"), weights, f"{name}.to_kv").chunk(2, -1)
                x = x + linear(attend(q, k, v, self.heads, self.there), weights, f"{name}.proj")
                x = x + mlp(norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp")
        guessed = linear(norm(x, weights, "predictor.norm"), weights, "predictor.leave")
        return torch.where(self.seen[:, None], self.data, guessed)


def loss(
    recipe: schema.Recipe,
    student: Weights,
    teacher: Weights,
    centres: tuple[torch.Tensor, torch.Tensor],
    views: MaskedBatch,
    frames: tuple[int, ...],
    packs: tuple[int, ...],
    apart: tuple[torch.Tensor, Mapping[int, torch.Tensor]] | None = None,
) -> torch.Tensor:
    """Of one step with these views; the weights float64, centres of class and data tokens. apart: of mixtures the
    patches of the views without their partners, and those of the partners [h, 256], by the number of the view."""
    asit, model = recipe.asit, recipe.model
    counts = [size // 2 for size in frames]
    longest = max(counts)

    def padded(values: torch.Tensor) -> list[torch.Tensor]:
        return [F.pad(each, (0,) * (2 * each.ndim - 1) + (longest - len(each),)) for each in values.split(counts)]

    def one_hot(centre: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        return ((given - centre) / asit.teacher_temperature).softmax(-1)

    alone, partners = (views.clean, {}) if apart is None else apart
    clean = padded(alone.double())
    heard = [[One(model, teacher, pixels, torch.arange(longest) < count)] for pixels, count in zip(clean, counts)]
    for at, patches in partners.items():  # a partner ends where it ends; after it there is the clip alone
        other = F.pad(patches.double(), (0, 0, 0, longest - len(patches)))
        heard[at].append(One(model, teacher, other, torch.arange(longest) < len(patches)))
        clean[at] = torch.cat([torch.maximum(clean[at], other)[: len(patches)], clean[at][len(patches) :]])

    def of_places(at: int, given: list[torch.Tensor]) -> torch.Tensor:
        """The mean of what is said of each place by those who hear it."""
        said = torch.stack(given) * torch.stack([one.seen for one in heard[at]])[..., None]
        return said.sum(0) / sum(one.seen.double() for one in heard[at]).clamp_min(1)[:, None]

    totals, sums, vectors = dict.fromkeys(("pixels", "local", "global"), 0.0), {}, []
    for name in ("reconstruction", "local", "global"):
        sums[name] = torch.zeros((), dtype=torch.float64)
    places = sum(counts)
    for clone in range(asit.clones):
        span = slice(clone * places, (clone + 1) * places)
        masks, inputs = padded(views.own.masks.patches[span]), padded(views.own.patches[span].double())
        for at, count in enumerate(counts):
            there = torch.arange(longest) < count
            hidden = masks[at].all(1) if asit.encode == "visible" else ~there
            one = One(model, student, inputs[at], there & ~hidden)
            tokens = one.data if asit.predictor == "none" else one.predicted(asit, count)
            said = one.seen if asit.predictor == "none" else there
            masked = masks[at].any(1) & said
            pixels = three_layers(tokens, student, "reconstruction.mlp")
            pixels = linear(pixels, student, "reconstruction.pixels")
            counted = masks[at] & masked[:, None]
            sums["reconstruction"] += ((pixels - clean[at]).abs() * counted).sum()
            totals["pixels"] += int(counted.sum())
            rows = masked if asit.local_on == "masked" else said
            if asit.targets == "features":
                given = []
                for source in heard[at]:
                    last = source.blocks[-(asit.target_blocks or model.depth) :]
                    mean = torch.stack([F.layer_norm(x, x.shape[-1:]) for x in last]).mean(0)
                    given.append(F.layer_norm(mean, mean.shape[-1:])[int(one.cls) :])
                target = of_places(at, given)
                each = (linear(tokens, student, "regression.linear") - target).square().mean(-1)
            else:
                given = [one_hot(centres[1], logits(source.data, teacher, "_data")) for source in heard[at]]
                target = of_places(at, given)
                each = -(target * (logits(tokens, student, "_data") / asit.student_temperature).log_softmax(-1)).sum(-1)
            sums["local"] += each[rows].sum()
            totals["local"] += int(rows.sum())
            said_of_all = [logits(source.pool(model.pooling), teacher, "") for source in heard[at ^ 1]]
            target = torch.stack([one_hot(centres[0], given) for given in said_of_all]).mean(0)
            own = logits(one.pool(model.pooling), student, "") / asit.student_temperature
            sums["global"] += -(target * own.log_softmax(-1)).sum()
            totals["global"] += 1
            vectors.append(F.normalize(one.rows() if asit.koleo_on == "rows" else one.pool(model.pooling), dim=0))
    result = sums["reconstruction"] / totals["pixels"] * asit.weight_reconstruction
    result = result + sums["local"] / totals["local"] * asit.weight_local
    result = result + sums["global"] / totals["global"] * asit.weight_global
    if asit.weight_koleo:
        result = result + asit.weight_koleo * koleo(vectors, packs, asit.clones)
    return result


def koleo(vectors: list[torch.Tensor], packs: tuple[int, ...], clones: int) -> torch.Tensor:
    pack_of = [pack for pack, clips in enumerate(packs) for _ in range(2 * clips)] * clones
    clone_of = [number // (len(vectors) // clones) for number in range(len(vectors))]
    terms = []
    for i, one in enumerate(vectors):
        others = [
            (one - other).square().sum()
            for j, other in enumerate(vectors)
            if j != i and (pack_of[j], clone_of[j], j % 2) == (pack_of[i], clone_of[i], i % 2)
        ]
        if others:
            terms.append(-(torch.stack(others).min() + 1e-6).log() / 2)
    return torch.stack(terms).mean()
