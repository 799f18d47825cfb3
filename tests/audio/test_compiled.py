"""What a GPU makes of waveforms, eager and compiled, run on the CPU and held against the CPU's own way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gamut import compiler
from gamut.audio import logmel
from gamut.audio import waveform as waveforms
from gamut.compiler import compiled_function

TOLERANCE = 1e-4


def ragged(generator: torch.Generator, segments: int) -> tuple:
    """(waveform, offset, length, hop, frames, sizes, partner) of random segments, some of them without a partner."""
    frames = 16 * torch.randint(1, 60, (segments,), generator=generator)
    hop = 40 * torch.randint(2, 9, (segments,), generator=generator)
    room = (frames - 1) * hop + 400
    length = room - torch.randint(0, 900, (segments,), generator=generator).clamp_max(room - 1)
    offset = F.pad(room.cumsum(0), (1, 0))
    waveform = torch.randint(-9000, 9000, (int(offset[-1]),), dtype=torch.int16, generator=generator)
    theirs = (torch.rand(segments, generator=generator) * length).long() * torch.randint(
        0, 2, (segments,), generator=generator
    )
    weight = torch.where(theirs > 0, torch.rand(segments, generator=generator), 1.0)
    sound = torch.randint(-9000, 9000, (int(theirs.sum()),), dtype=torch.int16, generator=generator)
    partner = waveforms.Partner(sound, F.pad(theirs.cumsum(0), (1, 0)), weight)
    return waveform, offset, length, hop, frames, tuple(frames.tolist()), partner


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_what_runs_on_a_gpu_equals_the_cpus_and_is_compiled_once(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Run here, in chunks of which the last is not full; over ragged batches, some of one segment or without partners.

    Compiled sums up a frame in an order of its own, which shows where a bin has next to nothing of its frame's energy.
    """
    from torch._dynamo import reset
    from torch._dynamo.utils import counters

    monkeypatch.setattr(logmel, "CHUNK_DEVICE", 2048)
    monkeypatch.setattr(compiler, "BACKEND", backend)
    reset()
    compiled_function.cache_clear()
    counters.clear()
    generator, graphs = torch.Generator().manual_seed(0), []
    for step in range(9):
        *given, partner = ragged(generator, 1 + (7 * step) % 13)
        mixed = None if step % 3 == 2 else partner
        offset, hop, frames, sizes = given[1], *given[3:]
        expected = logmel.log_mel(*given, partner=mixed)
        samples = [waveforms.mixed_ragged(*given[:3], mixed, compiled) for compiled in (False, True)]
        assert (samples[1] - samples[0]).abs().max() <= 1e-7
        tables = logmel._tables(torch.device("cpu"), "hanning")
        start = logmel._starts(offset, hop, frames, sum(sizes))
        plain, fast = (logmel._fast_on_device(samples[0], start, tables, compiled) for compiled in (False, True))
        loudest = expected.amax(1, keepdim=True)
        for one in (plain, fast):
            assert ((one - loudest).exp() - (expected - loudest).exp()).abs().max() <= 1e-6
            assert (one - expected)[expected > loudest - 9].abs().max() <= TOLERANCE
        assert torch.equal(
            compiled_function(logmel._normalised, True)(fast, -4.0, 4.0), logmel.normalise(fast, -4.0, 4.0)
        )
        graphs.append(counters["stats"]["unique_graphs"])
    assert len(set(graphs[3:])) == 1, graphs  # the third is the first without a partner
    assert not counters["graph_break"]
    reset()
    compiled_function.cache_clear()
