"""Public checkpoints' key names to ours: timm's in the backbone, `head.norm` and `head.linear` beside it.

| whose | backbone | classifier |
| --- | --- | --- |
| timm, and all that keep its names (ASiT: `backbone.*`) | as it is | |
| transformers' ViT | renamed | |
| transformers' AST | renamed, under `v.` as in AST's own | `classifier.{layernorm, dense}` |
| AST, SSAST | `v.*`, in timm's names | `mlp_head.{0, 1}` |
| ElasticAST | renamed, under `backbone.` | `mlp_norm`, `head` |
| AudioMAE (timm's; fine-tuned, `fc_norm` is its norm), M2D (turned: time first) | as it is | |
| EAT, SSLAM, of fairseq and of transformers | renamed | `fc_norm`, `head` |
| Dasheng | positions renamed | |
| BEATs | renamed, to those of `gamut.models.beats` | |

Of ElasticAST's layout this is taken to be so: `patch_embed.0` is a linear map of 256 pixels, 16 * frequency + time;
`pos_embed_freq` and `pos_embed_time` are tables; the blocks, `blocks.modules_list.N`, have `norm1`, `attn.to_q`,
`attn.to_kv` (keys, then values), `attn.proj`, `norm2`, `mlp.fc1` and `mlp.fc2`; `norm` comes before the pooling, whose
one query `attn_pool_queries` goes through `attn_pool.{to_q, to_kv, proj}`; then `mlp_norm` and `head`. A projection
without a bias, as NaViT's are, is one with a bias of zeros. Anything that a block has besides is refused when loaded.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping

import torch

KERNEL = "patch_embed.proj.weight"  # timm's name, and ours
HUGGING_FACE_KERNEL = "embeddings.patch_embeddings.projection.weight"
EAT_KERNELS = ("modality_encoders.IMAGE.local_encoder.proj.weight", "local_encoder.proj.weight")  # fairseq's; after it
BEATS_KERNEL = "patch_embedding.weight"
DASHENG_TIME = "time_pos_embed"
HUGGING_FACE_AST = "audio_spectrogram_transformer."  # what its backbone lies under, beside a classifier
ELASTIC_KERNEL = "patch_embed.0.weight"
KERNELS = (KERNEL, HUGGING_FACE_KERNEL, ELASTIC_KERNEL, EAT_KERNELS[1], BEATS_KERNEL)
M2D_BANDS = 5  # patches over its 80 mel bins

State = dict[str, torch.Tensor]

# transformers' ViT and AST, of versions before 5 and since, after `embeddings.`, `encoder.layer.N.` or `layers.N.`
_EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": KERNEL,
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_BLOCK = re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.(.+?)(\.weight|\.bias|)")
_IN_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "attention.q_proj": "attn.q",
    "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v",
    "attention.o_proj": "attn.proj",
}
_HUGGING_FACE_HEAD = (("classifier.layernorm.", "head.norm."), ("classifier.dense.", "head.linear."))
_AST_HEAD = (("mlp_head.0.", "head.norm."), ("mlp_head.1.", "head.linear."))
_EAT_PARTS = (
    ("local_encoder.", "patch_embed."),
    ("extra_tokens", "cls_token"),
    ("fixed_positional_encoder.positions", "pos_embed"),
)
_ELASTIC = (  # longer names before those that they begin with
    ("patch_embed.0.", "backbone.patch_embed.proj."),
    ("pos_embed_", "backbone.pos_embed_"),
    ("blocks.modules_list.", "backbone.blocks."),
    ("norm.", "backbone.norm."),
    ("attn_pool_queries", "backbone.attn_pool.query"),
    ("attn_pool.", "backbone.attn_pool."),
    ("mlp_norm.", "head.norm."),
    ("head.", "head.linear."),
)
_EAT = (
    *((f"modality_encoders.IMAGE.{name}", ours) for name, ours in _EAT_PARTS),
    ("modality_encoders.IMAGE.context_encoder.norm.", "norm."),
    *_EAT_PARTS,
    ("pre_norm.", "norm."),
)
_BEATS = (  # after `encoder.`, but for the first three
    ("patch_embedding.", "patch_embed.proj."),
    ("layer_norm.", "patch_embed.norm."),
    ("post_extract_proj.", "patch_embed.out."),
    ("encoder.pos_conv.0.parametrizations.weight.original0", "pos_conv.weight_g"),
    ("encoder.pos_conv.0.parametrizations.weight.original1", "pos_conv.weight_v"),
    ("encoder.pos_conv.0.", "pos_conv."),
    ("encoder.layer_norm.", "norm."),
    ("encoder.layers.0.self_attn.relative_attention_bias.", "distance."),
)
_BEATS_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
_IN_BEATS_BLOCK = (
    ("self_attn_layer_norm.", "norm1."),
    ("self_attn.q_proj.", "attn.q."),
    ("self_attn.k_proj.", "attn.k."),
    ("self_attn.v_proj.", "attn.v."),
    ("self_attn.out_proj.", "attn.proj."),
    ("self_attn.grep_linear.", "attn.gate."),
    ("self_attn.grep_a", "attn.gate_scale"),
    ("fc1.", "mlp.fc1."),
    ("fc2.", "mlp.fc2."),
    ("final_layer_norm.", "norm2."),
)


def our_names(state: State) -> State:
    """Tensors under our names, behind the prefix that they have; what is none of a model's is left as it is.

    What a block has besides keeps a name in that block, so that it is missed.
    """
    for prefix in _prefixes(state, HUGGING_FACE_KERNEL):
        state = _hugging_face(state, prefix)
    for prefix in _prefixes(state, ELASTIC_KERNEL):
        state = _elastic(state, prefix)
    for prefix in _prefixes(state, f"v.{KERNEL}"):
        state = _renamed(state, prefix, functools.partial(_of_table, table=_AST_HEAD))
    for kernel in EAT_KERNELS:
        for prefix in _prefixes(state, kernel):
            state = _eat(state, prefix)
    for prefix in _prefixes(state, BEATS_KERNEL):
        state = _beats(state, prefix)
    for prefix in _prefixes(state, KERNEL):
        if f"{prefix}norm.weight" not in state and f"{prefix}fc_norm.weight" in state:
            state = _renamed(state, prefix, functools.partial(_of_table, table=(("fc_norm.", "norm."),)))
        if f"{prefix}{DASHENG_TIME}" in state:
            state = _dasheng(state, prefix)
        elif is_m2d({name: tensor.shape for name, tensor in state.items()}, prefix):
            state = _m2d(state, prefix)
    return state


def is_m2d(shapes: Mapping[str, torch.Size], prefix: str) -> bool:
    """Whether the ViT behind the prefix is one of spectrograms with 5 patches over frequency, and not 8 or 12.

    Its kernel is (frequency, time), and its positions go over time first; the number of bands shows in theirs alone.
    """
    kernel, table = (shapes.get(f"{prefix}{name}", torch.Size()) for name in (KERNEL, "pos_embed"))
    if len(kernel) != 4 or kernel[1] != 1 or len(table) != 3 or f"{prefix}cls_token" not in shapes:
        return False
    patches = table[1] - 1
    return prefix.split(".")[-2:] != ["v", ""] and patches % M2D_BANDS == 0 and all(patches % high for high in (8, 12))


def _prefixes(state: State, kernel: str) -> list[str]:
    """What stands before a kernel's name: nothing, or something that ends with a dot."""
    before = [name.removesuffix(kernel) for name in state if name.endswith(kernel)]
    return [prefix for prefix in before if not prefix or prefix.endswith(".")]


def _renamed(state: State, prefix: str, rename: Callable[[str], str]) -> State:
    """What lies behind the prefix under other names; their order stays."""
    n = len(prefix)
    return {prefix + rename(key[n:]) if key.startswith(prefix) else key: value for key, value in state.items()}


def _of_table(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for old, new in table:
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def _hugging_face(state: State, prefix: str) -> State:
    """A ViT's names to timm's; an AST, which has a distillation token, to AST's own, which are timm's behind `v.`."""
    spectrogram = f"{prefix}embeddings.distillation_token" in state
    above = prefix.removesuffix(HUGGING_FACE_AST) if spectrogram else prefix
    inside = prefix[len(above) :]
    to = "v." if spectrogram else ""

    def rename(name: str) -> str:
        if not name.startswith(inside) or (spectrogram and name.startswith("classifier.")):
            return _of_table(name, _HUGGING_FACE_HEAD) if spectrogram else name
        rest = name[len(inside) :]
        block = _BLOCK.fullmatch(rest)
        if block:
            return f"{to}blocks.{block[1]}.{_IN_BLOCK.get(block[2], block[2])}{block[3]}"
        return to + _EMBEDDINGS.get(rest, rest)

    return _joined(_renamed(state, above, rename), above + to)


def _joined(state: State, prefix: str) -> State:
    """Queries, keys and values of the blocks behind the prefix as one."""
    query = re.compile(re.escape(prefix) + r"blocks\.\d+\.attn\.q\.\w+")
    for name in [name for name in state if query.fullmatch(name)]:
        parts = [name.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(part in state for part in parts):
            state[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([state.pop(part) for part in parts])
    return state


def _elastic(state: State, prefix: str) -> State:
    state = _renamed(state, prefix, functools.partial(_of_table, table=_ELASTIC))
    kernel, query = f"{prefix}backbone.{KERNEL}", f"{prefix}backbone.attn_pool.query"
    if state[kernel].ndim == 2 and state[kernel].shape[1] == 256:
        state[kernel] = state[kernel].unflatten(1, (16, 16)).transpose(1, 2).flatten(1)  # ours: 16 * time + frequency
    if query in state:
        state[query] = state[query].reshape(1, -1)
    own = [name for name in state if name.startswith(f"{prefix}backbone.")]
    for name in own:
        bias = name.removesuffix("weight") + "bias"
        if name.endswith((".to_q.weight", ".to_kv.weight")) and bias not in state:
            state[bias] = torch.zeros_like(state[name][:, 0])
    for name in [name.removesuffix("to_q.weight") for name in own if name.endswith(".attn.to_q.weight")]:
        for kind in ("weight", "bias"):
            parts = [f"{name}{part}.{kind}" for part in ("to_q", "to_kv")]
            if all(part in state for part in parts):
                state[f"{name}qkv.{kind}"] = torch.cat([state.pop(part) for part in parts])
    return state


def _eat(state: State, prefix: str) -> State:
    """Its class token has no position: a row of zeros."""
    heads = (("fc_norm.", "head.norm."), ("head.", "head.linear."))
    state = _renamed(state, prefix, functools.partial(_of_table, table=(*_EAT, *heads)))
    table = f"{prefix}pos_embed"
    if table in state:
        state[table] = torch.nn.functional.pad(state[table].flatten(0, -2), (0, 0, 1, 0))[None]
    return state


def _dasheng(state: State, prefix: str) -> State:
    """Positions [1, dim, 1, columns] and [1, dim, 1, 1] as rows; a kernel of (64 mel bins, 4 frames) turned."""
    state = dict(state)
    for theirs, ours in ((DASHENG_TIME, "pos_embed_time"), ("freq_pos_embed", "pos_embed_freq")):
        if f"{prefix}{theirs}" in state:
            state[f"{prefix}{ours}"] = state.pop(f"{prefix}{theirs}").flatten(2)[0].T
    return _turned(state, prefix)


def _m2d(state: State, prefix: str) -> State:
    table = state[f"{prefix}pos_embed"]
    grid = table[:, 1:].unflatten(1, (M2D_BANDS, -1)).transpose(1, 2).flatten(1, 2)
    return _turned(state | {f"{prefix}pos_embed": torch.cat([table[:, :1], grid], 1)}, prefix)


def _turned(state: State, prefix: str) -> State:
    kernel = f"{prefix}{KERNEL}"
    return state | {kernel: state[kernel].transpose(2, 3)} if state[kernel].ndim == 4 else state


def _beats(state: State, prefix: str) -> State:
    """The convolution's weight norm is multiplied out, the kernel flat; positions are all blocks' the first one's."""

    def rename(name: str) -> str:
        block = _BEATS_BLOCK.fullmatch(name)
        inside = _of_table(block[2], _IN_BEATS_BLOCK) if block else ""
        return f"blocks.{block[1]}.{inside}" if block and inside != block[2] else _of_table(name, _BEATS)

    state = _joined(_renamed(state, prefix, rename), prefix)
    kernel, size, way = (f"{prefix}{name}" for name in (KERNEL, "pos_conv.weight_g", "pos_conv.weight_v"))
    state[kernel] = state[kernel].flatten(1)
    if size in state and way in state:
        weight = state.pop(way)
        norm = weight.float().norm(dim=(0, 1), keepdim=True).to(weight.dtype)
        state[f"{prefix}pos_conv.weight"] = weight * (state.pop(size) / norm)
    for name in [name for name in state if name.startswith(prefix) and name.endswith(".attn.gate_scale")]:
        state[name] = state[name].flatten()
    return state
