"""What an evaluation does on the device: a recipe's scores, or in pretraining the vectors that probes are fitted to."""

from __future__ import annotations

from typing import Any

import torch

from gamut.estimate.answers import Answers
from gamut.estimate.calls import Call
from gamut.estimate.fakes import as_fake, codes_of_kept, surroundings
from gamut.estimate.step import LIKE_AUDIOSET, objective_of
from gamut.estimate.trace import Trace, tracing
from gamut.estimate.work import Work
from gamut.probe.features import Encoder, FrontEnd
from gamut.recipe.schema import Recipe
from gamut.train.objective import Pretraining


def evaluation(recipe: Recipe, work: Work, kind: str) -> list[Call]:
    """The calls for one micro-batch's clips, until what is computed is on the host. kind: cuda or cpu."""
    gpu = kind == "cuda"
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    deterministic = recipe.run.deterministic or not gpu
    batch = work.batch()
    with surroundings(deterministic, gpu):
        trace = Trace(device, Answers(), deterministic, frozenset(), codes_of_kept())
        with tracing(trace) as fake, torch.no_grad():
            objective: Any = objective_of(recipe, work, device)
            trace.phase = "evaluate"
            if isinstance(objective, Pretraining):
                front = FrontEnd(*LIKE_AUDIOSET, recipe.front.mode)
                encode = Encoder(objective.backbone, front, recipe.precision, device, recipe.probe.rows)
                found = torch.cat([*encode(as_fake(fake, batch)).values()], 1)
            else:
                found = objective.logits(as_fake(fake, batch))
            found.cpu()
    return [call for call in trace.calls if call.phase == "evaluate"]
