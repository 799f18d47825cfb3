"""The two systems as they were published, written from the papers alone (PyTorch as anyone would write it).

A batch is a rectangle: ElasticAST's clips lie one after the other in rows of at most 2,048 tokens, in order, each row
padded to the longest, behind a dense block-diagonal mask; ASiT's views all have one length. The log-mel is made on the
CPU, a view at a time. Clipping asks the device for the norm of each parameter (`.item()`), the teacher follows a
parameter at a time, and masks are drawn by loops on the host.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import nn

ROW = 2048  # tokens of a row, at most


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """x: [rows, length, dim]; mask: bool [rows, 1, length, length], or None."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Trunk(nn.Module):
    """Patches [rows, length, 256] to tokens, with a class token in front where the positions have a place for it."""

    def __init__(self, dim: int, depth: int, heads: int, places: int, class_token: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(256, dim)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.position = nn.Parameter(torch.randn(places + class_token, dim) * 0.02)
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, place: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = self.embed(x)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        x = x + (self.position[: x.shape[1]] if place is None else self.position[place])
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)


class Head(nn.Module):
    """D-2048-GELU-2048-GELU-256, and a weight-normalised layer to the prototypes, or to the pixels of a patch."""

    def __init__(self, dim: int, out: int, normalised: bool) -> None:
        super().__init__()
        wide = min(2048, 8 * dim)
        self.body = nn.Sequential(nn.Linear(dim, wide), nn.GELU(), nn.Linear(wide, wide), nn.GELU())
        self.narrow, self.last, self.normalised = nn.Linear(wide, 256), nn.Linear(256, out, bias=False), normalised

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.narrow(self.body(x))
        if not self.normalised:
            return self.last(x)
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.last.weight, dim=-1))


class Siamese(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, places: int, prototypes: int) -> None:
        super().__init__()
        self.trunk = Trunk(dim, depth, heads, places, True)
        self.project, self.rebuild = Head(dim, prototypes, True), Head(dim, 256, False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.trunk(x)
        return self.project(tokens), self.rebuild(tokens[:, 1:])


class PublishedAsit:
    """A step of ASiT on log-mels [2 * clips, frames, 128] that lie on the CPU."""

    def __init__(self, dim: int, depth: int, heads: int, frames: int, prototypes: int, device: torch.device) -> None:
        shape = dim, depth, heads, frames // 16 * 8, prototypes
        self.student, self.teacher = Siamese(*shape).to(device), Siamese(*shape).to(device)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.centre = torch.zeros(prototypes, device=device)
        self.optimiser = torch.optim.AdamW(self.student.parameters(), lr=1e-4)
        self.device = device

    def step(self, mel: torch.Tensor) -> float:
        views = len(mel)
        clean = self._patches(mel).to(self.device)
        masks = self._patches(torch.stack([draw_mask(mel.shape[1]) for _ in range(views)])).to(self.device).bool()
        with torch.autocast(self.device.type, torch.bfloat16):
            student, rebuilt = self.student(clean.masked_fill(masks, 0.0))
            with torch.no_grad():
                taught, _ = self.teacher(clean)
        target = ((taught.float() - self.centre) / 0.07).softmax(-1)
        own = (student.float() / 0.1).log_softmax(-1)
        local = -(target[:, 1:] * own[:, 1:]).sum(-1)[masks.any(-1)].mean()
        swapped = target[:, 0].view(-1, 2, target.shape[-1]).flip(1).flatten(0, 1)
        whole = -(swapped * own[:, 0]).sum(-1).mean()
        pixels = ((rebuilt.float() - clean).abs() * masks).sum() / masks.sum()
        loss = pixels + local + whole
        self.optimiser.zero_grad()
        loss.backward()
        clip_by_asking(self.student, 3.0)
        self.optimiser.step()
        with torch.no_grad():
            for mine, theirs in zip(self.teacher.parameters(), self.student.parameters()):
                mine.mul_(0.996).add_(theirs, alpha=0.004)
            self.centre = 0.9 * self.centre + 0.1 * taught.float().mean((0, 1))
        return loss.item()

    @staticmethod
    def _patches(x: torch.Tensor) -> torch.Tensor:
        """[rows, frames, 128] to [rows, frames / 16 * 8, 256]."""
        return x.unflatten(1, (-1, 16)).unflatten(3, (8, 16)).transpose(2, 3).flatten(3).flatten(1, 2)


def draw_mask(frames: int, share: float = 0.7) -> torch.Tensor:
    """bool [frames, 128]: blocks laid one by one until so much is hidden."""
    mask = torch.zeros(frames, 128, dtype=torch.bool)
    while mask.float().mean().item() < share:
        top, left = random.randrange(frames), random.randrange(128)
        mask[top : top + random.randint(1, int(0.3 * frames)), left : left + random.randint(1, 38)] = True
    return mask


class PublishedElastic:
    """A step of ElasticAST on log-mels [frames, 128] of clips of any length, that lie on the CPU."""

    def __init__(self, dim: int, depth: int, heads: int, classes: int, device: torch.device) -> None:
        self.trunk = Trunk(dim, depth, heads, ROW, False).to(device)
        self.query = nn.Parameter(torch.randn(1, 1, dim, device=device))
        self.pool = nn.MultiheadAttention(dim, heads, batch_first=True).to(device)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes)).to(device)
        self.whole = nn.ModuleList([self.trunk, self.pool, self.head])
        self.optimiser = torch.optim.Adam([*self.whole.parameters(), self.query], lr=1e-5)
        self.heads, self.device = heads, device

    def step(self, mels: list[torch.Tensor], targets: torch.Tensor) -> float:
        clips = [PublishedAsit._patches(mel[None])[0] for mel in mels]
        rows = in_order([len(clip) for clip in clips])
        longest = max(sum(len(clips[clip]) for clip in row) for row in rows)
        x, owner = torch.zeros(len(rows), longest, 256), torch.full((len(rows), longest), -1)
        place = torch.zeros(len(rows), longest, dtype=torch.int64)
        for number, row in enumerate(rows):
            begin = 0
            for clip in row:
                end = begin + len(clips[clip])
                x[number, begin:end], owner[number, begin:end] = clips[clip], clip
                place[number, begin:end] = torch.arange(end - begin)
                begin = end
        x, owner, place = x.to(self.device), owner.to(self.device), place.to(self.device)
        mask = (owner[:, :, None] == owner[:, None, :])[:, None]
        with torch.autocast(self.device.type, torch.bfloat16):
            tokens = self.trunk(x, mask, place)
            logits = []
            for number, row in enumerate(rows):
                own = torch.stack([owner[number] != clip for clip in row])  # [clips, length]: what each may not see
                each = tokens[number].expand(len(row), -1, -1)
                pooled, _ = self.pool(self.query.expand(len(row), -1, -1), each, each, key_padding_mask=own)
                logits.append(self.head(pooled[:, 0]))
            loss = F.binary_cross_entropy_with_logits(torch.cat(logits).float(), targets.to(self.device))
        self.optimiser.zero_grad()
        loss.backward()
        clip_by_asking(self.whole, 1.0)
        self.optimiser.step()
        return loss.item()


def in_order(lengths: list[int]) -> list[list[int]]:
    """Clips by row: each into the last row, or into a new one where it does not fit."""
    rows: list[list[int]] = []
    room = 0
    for clip, length in enumerate(lengths):
        if not rows or length > room:
            rows.append([])
            room = ROW
        rows[-1].append(clip)
        room -= length
    return rows


def clip_by_asking(model: nn.Module, limit: float) -> None:
    """Each gradient by its own norm, which the host waits for."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            norm = parameter.grad.norm().item()
            if norm > limit:
                parameter.grad.mul_(limit / norm)
