"""What the toy run must come to, written out by hand: whole batches, plain autograd, AdamW by its formulas."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from toy import Network, ToyLoader, inputs, toy_epoch

from gamut.recipe import schema
from gamut.threads import one_thread
from gamut.train.schedule import Schedule


@one_thread()  # as a rank of these tests runs
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


@one_thread()
def by_the_same_split(
    recipe: schema.Recipe, epochs: int, world: int, *, each_micro: bool = False, steps: int = 5
) -> dict:
    """What a plain AdamW (or Adam, as the recipe says) comes to whose gradients are summed as the ranks sum them: over
    each rank's micro-batches and then over ranks, or (`each_micro`: ZeRO-2 and 3) over the ranks in every micro-batch.

    {"gradients": before clipping, a dict a step, "weights", "extra"}
    """
    student = Network()
    teacher = copy.deepcopy(student)
    centre = torch.zeros(4)
    plain = [p for p in student.parameters() if p.ndim <= 1]
    decayed = [p for p in student.parameters() if p.ndim > 1]
    optim = recipe.optim
    kind = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
    adam = kind([{"params": decayed}, {"params": plain}], lr=0.0, betas=optim.betas, eps=optim.eps, weight_decay=0.0)
    packs = recipe.step.packs
    first = toy_epoch(0, steps, packs)
    schedule = Schedule.of(optim, recipe.epochs, first.draws, first.steps)
    gradients = []
    for number in range(epochs):
        epoch = toy_epoch(number, steps, packs)
        loaders = [
            ToyLoader(None, epoch, rank=rank, world=world, per_forward=recipe.loader.packs_per_forward)
            for rank in range(world)
        ]
        for step, dealt in enumerate(zip(*loaders)):
            fraction = (number * epoch.draws + epoch.draws_before(step)) / (recipe.epochs * epoch.draws)
            batches = [batch for _, batches in dealt for batch in batches]
            counts = sum(batch.clips for batch in batches)
            weights = sum(float(inputs(batch.row, number)[1].double().sum()) for batch in batches)
            sums = torch.zeros(4, dtype=torch.float64)
            total = [torch.zeros_like(p) for p in student.parameters()]
            own = [batches for _, batches in dealt]
            for together in zip(*own) if each_micro else own:
                mine = [torch.zeros_like(p) for p in student.parameters()]
                for batch in together:
                    x, weight = inputs(batch.row, number)
                    with torch.no_grad():
                        goal = teacher(x)
                    sums += goal.sum(0, dtype=torch.float64)
                    out = student(x)
                    target = torch.stack([x[:, 0] * x[:, 1], x[:, 2], x[:, 3].square(), x[:, 4]], 1)
                    loss = (weight[:, None] * (out - target).square()).sum() / weights
                    loss = loss + 0.5 * (out - (goal - centre)).square().sum() / counts
                    for held, gradient in zip(mine, torch.autograd.grad(loss, list(student.parameters()))):
                        held += gradient
                for held, gradient in zip(total, mine):
                    held += gradient
            names = [name for name, _ in student.named_parameters()]
            gradients.append({name: held.numpy().copy() for name, held in zip(names, total)})
            norm = math.sqrt(sum(float(held.double().square().sum()) for held in total))
            scale = min(1.0, optim.clip / (norm + 1e-6)) if optim.clip else 1.0
            for parameter, held in zip(student.parameters(), total):
                parameter.grad = held * scale
            for group, decay in zip(adam.param_groups, (schedule.decay(fraction), 0.0)):
                group["lr"], group["weight_decay"] = schedule.lr(fraction), decay
            adam.step()
            with torch.no_grad():
                for slow, fast in zip(teacher.parameters(), student.parameters()):
                    slow.lerp_(fast, 0.1 + 0.1 * fraction)
            centre = 0.9 * centre + 0.1 * (sums / counts).float()
    weights = {name: p.detach().numpy().copy() for name, p in student.named_parameters()}
    extra = {f"teacher.{name}": p.detach().numpy().copy() for name, p in teacher.named_parameters()}
    return {"gradients": gradients, "weights": weights, "extra": extra | {"centre": centre.numpy()}}
