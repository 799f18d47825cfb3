"""Public checkpoints' key names to ours: timm's in the backbone, `head.norm` and `head.linear` beside it.

| whose | backbone | classifier |
| --- | --- | --- |
| timm, and all that keep its names (ASiT: `backbone.*`) | as it is | |
| transformers' ViT | renamed | |
| transformers' AST | renamed, under `v.` as in AST's own | `classifier.{layernorm, dense}` |
| AST, SSAST | `v.*`, in timm's names | `mlp_head.{0, 1}` |
| ElasticAST | renamed, under `backbone.` | `mlp_norm`, `head` |

Of ElasticAST's layout this is taken to be so: `patch_embed.0` is a linear map of 256 pixels, 16 * frequency + time;
`pos_embed_freq` and `pos_embed_time` are tables; the blocks, `blocks.modules_list.N`, have `norm1`, `attn.to_q`,
`attn.to_kv` (keys, then values), `attn.proj`, `norm2`, `mlp.fc1` and `mlp.fc2`; `norm` comes before the pooling, whose
one query `attn_pool_queries` goes through `attn_pool.{to_q, to_kv, proj}`; then `mlp_norm` and `head`. A projection
without a bias, as NaViT's are, is one with a bias of zeros. Anything that a block has besides is refused when loaded.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import torch

KERNEL = "patch_embed.proj.weight"  # timm's name, and ours
HUGGING_FACE_KERNEL = "embeddings.patch_embeddings.projection.weight"
HUGGING_FACE_AST = "audio_spectrogram_transformer."  # what its backbone lies under, beside a classifier
ELASTIC_KERNEL = "patch_embed.0.weight"
KERNELS = (KERNEL, HUGGING_FACE_KERNEL, ELASTIC_KERNEL)

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
    return state


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
    """A ViT's names to timm's; an AST, whose kernel has one colour, to AST's own, which are timm's behind `v.`."""
    spectrogram = state[prefix + HUGGING_FACE_KERNEL].shape[1] == 1
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

    state = _renamed(state, above, rename)
    query = re.compile(re.escape(above + to) + r"blocks\.\d+\.attn\.q\.\w+")
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
