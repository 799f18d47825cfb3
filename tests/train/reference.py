"""What the toy run must come to, written out by hand: whole batches, plain autograd, AdamW by its formulas."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from toy import Network, inputs, toy_epoch

from gamut.recipe import schema


def reference(recipe: schema.Recipe, epochs: int, steps: int = 5, packs: int = 4) -> dict:
    """Losses, gradient norms and final weights of the first `epochs` epochs of the toy run."""
    optim = recipe.optim
    student = Network()
    teacher = copy.deepcopy(student)
    centre = torch.zeros(4)
    names = [name for name, _ in student.named_parameters()]
    state = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in student.named_parameters()}
    losses, norms, applied = [], [], 0
    first = toy_epoch(0, steps, packs)
    peak = optim.lr * (first.draws / first.steps) / optim.lr_base_batch
    warmup = min(optim.warmup_epochs / recipe.epochs, 0.25)
    for number in range(epochs):
        epoch = toy_epoch(number, steps, packs)
        for step in range(steps):
            begin, end = epoch.pack_offset[step * packs], epoch.pack_offset[(step + 1) * packs]
            fraction = (number * epoch.draws + begin) / (recipe.epochs * epoch.draws)
            rows = torch.as_tensor(np.asarray(epoch.row[begin:end]))
            x, weight = inputs(rows, number)
            with torch.no_grad():
                goal = teacher(x)
            out = student(x)
            target = torch.stack([x[:, 0] * x[:, 1], x[:, 2], x[:, 3] ** 2, x[:, 4]], 1)
            fit = (weight[:, None] * (out - target) ** 2).sum() / weight.sum()
            loss = fit + 0.5 * ((out - goal + centre) ** 2).sum() / len(rows)
            gradients = torch.autograd.grad(loss, list(student.parameters()))
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
            losses.append(float(loss.detach()))
            norms.append(norm)

            if fraction < warmup:
                lr = peak * fraction / warmup
            else:
                turn = (1 + math.cos(math.pi * (fraction - warmup) / (1 - warmup))) / 2
                lr = optim.lr_end + (peak - optim.lr_end) * turn
            decay = optim.weight_decay_end + (optim.weight_decay - optim.weight_decay_end) * (
                (1 + math.cos(math.pi * fraction)) / 2
            )
            applied += 1
            beta1, beta2 = optim.betas
            scale = min(1.0, optim.clip / (norm + 1e-6)) if optim.clip else 1.0
            with torch.no_grad():
                for name, parameter, gradient in zip(names, student.parameters(), gradients):
                    mean, square = state[name]
                    gradient = gradient * scale
                    mean.mul_(beta1).add_(gradient * (1 - beta1))
                    square.mul_(beta2).add_(gradient**2 * (1 - beta2))
                    if parameter.ndim > 1:
                        parameter.mul_(1 - lr * decay)
                    corrected = (square / (1 - beta2**applied)).sqrt() + optim.eps
                    parameter.sub_(lr * (mean / (1 - beta1**applied)) / corrected)
                for slow, fast in zip(teacher.parameters(), student.parameters()):
                    slow.lerp_(fast, 0.1 + 0.1 * fraction)
            centre = 0.9 * centre + 0.1 * goal.mean(0)
    weights = {name: p.detach().numpy().copy() for name, p in student.named_parameters()}
    extra = {f"teacher.{name}": p.detach().numpy().copy() for name, p in teacher.named_parameters()}
    return {"losses": losses, "norms": norms, "weights": weights, "extra": extra | {"centre": centre.numpy()}}
