"""Log-mel spectrogram of a ragged batch, and its cut into 16x16 patches.

The front end of AST, ASiT and ElasticAST: Kaldi filter banks as torchaudio computes them (`PARAMETERS`) of the
mean-free waveform in [-1, 1). Two modes: `exact` calls torchaudio a segment at a time and has its bits; `fast` is
ours, one call for segments of any lengths, each with a hop of its own.

`fast` does everything up to the transform in torchaudio's order of rounding. That is what keeps the two together:
the logarithm of a bin with next to no energy in an otherwise loud frame amplifies every rounding before the transform.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from gamut.audio.frames import average_pool, frame_table
from gamut.audio.waveform import SCALE, Partner, mixed
from gamut.compiler import Forward, compiled_function
from gamut.numbers import BINS, PATCH, RATE, WINDOW, columns

FFT = 512
LOW = 20.0  # Hz
PREEMPHASIS = 0.97
FLOOR = torch.finfo(torch.float32).eps
GROUPS = 8  # of neighbouring filters: in a narrow one the product meets few zeros

# Frames worked on together: on a CPU so few that the intermediate results stay in the cache; on a GPU
# enough to fill it, few enough to bound the memory (0.4 GB).
CHUNK_CPU = 512
CHUNK_DEVICE = 65536
# A GPU makes a plan for each number of transforms done together, and keeps it: that number is a power of two from here
# to a chunk, however ragged the batches are.
FEWEST_DEVICE = 1024

Groups = list[tuple[int, int, int, torch.Tensor]]  # of filters: (low, high, first mel, weights)
Tables = tuple[torch.Tensor, Groups]  # with the window before them


class Bank(NamedTuple):
    """What filter banks of one kind do to the waveform; beyond that all are as `PARAMETERS` says."""

    window: str = "hanning"  # Kaldi's name of it, or povey: Hann's to the power of 0.85
    full_scale: float = 1.0  # of the waveform: 1, or 32768 as Kaldi has it
    mean_free: bool = True  # whether the clip's mean is subtracted


AST = Bank()
BEATS = Bank("povey", 32768.0, mean_free=False)

PARAMETERS: dict[str, Any] = {
    "htk_compat": True,
    "use_energy": False,
    "window_type": "hanning",
    "num_mel_bins": BINS,
    "dither": 0.0,
    "frame_length": 25.0,
    "sample_frequency": float(RATE),
}


@torch.no_grad()
def log_mel(
    waveform: torch.Tensor,
    offset: torch.Tensor,
    length: torch.Tensor,
    hop: torch.Tensor,
    frames: torch.Tensor,
    sizes: tuple[int, ...],
    mode: str = "fast",
    *,
    pool: torch.Tensor | None = None,
    pools: tuple[int, ...] = (),
    partner: Partner | None = None,
    gain: torch.Tensor | None = None,
    bank: Bank = AST,
    compiled: bool = False,
) -> torch.Tensor:
    """Log-mel frames, float32 [sum(sizes), 128], of S segments one after the other, on the waveform's device.

    Args:
        waveform: int16 [samples], 16 kHz, all segments.
        offset: int64 [S + 1]; segment s owns samples [offset[s], offset[s + 1]), at least
            (frames[s] * pool[s] - 1) * hop[s] + 400 of them.
        length: int64 [S], samples that are the clip's own. Their mean is subtracted; what follows them is silence.
        hop: int64 [S], in samples.
        frames: int64 [S], frames to return.
        sizes: `frames` as Python numbers, so that nothing waits for the device.
        mode: `fast`, within 1e-4 of Kaldi's; or `exact`, the bits of `torchaudio.compliance.kaldi.fbank` on the
            segment by itself (for checking: it goes a segment at a time and waits for the device).
        pool: int64 [S], neighbouring frames averaged into one, and `pools` the same as Python numbers; None: 1.
        partner: the waveforms that the segments are mixed with; None: none.
        gain: float32 [S], what a segment's samples are multiplied with, where it owns all that lie before the next
            one's; None: 1.
        bank: ours and AST's; or another's, without a partner.
        compiled: on a device other than a CPU, `fast` by torch.compile: few passes over the samples.

    Raises ValueError for an unknown mode or tensors that do not belong together.
    """
    if not len(offset) - 1 == len(length) == len(hop) == len(frames) == len(sizes):
        raise ValueError(
            f"offset, length, hop, frames and sizes describe {len(offset) - 1}, {len(length)}, {len(hop)}, "
            f"{len(frames)} and {len(sizes)} segments; they must describe the same."
        )
    if mode not in ("fast", "exact"):
        raise ValueError(f"The log-mel has the modes fast and exact, not {mode!r}.")
    if pool is not None and len(pools) != len(sizes):
        raise ValueError(f"`pools` describes {len(pools)} segments and `sizes` {len(sizes)}; they must be as many.")
    if not sum(sizes):
        return torch.empty(0, BINS, device=waveform.device)
    raw, raw_sizes = frames, sizes
    if pool is not None:
        raw, raw_sizes = frames * pool, tuple(size * span for size, span in zip(sizes, pools))
    with torch.autocast(waveform.device.type, enabled=False), _full_precision(waveform.device):
        if bank.mean_free:
            samples = mixed(waveform, offset, length, partner, compiled, each=mode == "exact")
        else:
            samples = waveform * SCALE
        if gain is not None:
            samples *= torch.repeat_interleave(gain, offset.diff(), output_size=len(samples))
        if bank.full_scale != 1.0:
            samples *= bank.full_scale
        if mode == "exact":
            mel = _exact(samples, offset, hop, raw_sizes, bank)
        else:
            start = _starts(offset, hop, raw, sum(raw_sizes))
            on_cpu = samples.device.type == "cpu"
            tables = _tables(samples.device, bank.window)
            mel = _fast_on_cpu(samples, start, tables) if on_cpu else _fast_on_device(samples, start, tables, compiled)
        return mel if pool is None else average_pool(mel, frames, sizes, pool, pools)


def _starts(offset: torch.Tensor, hop: torch.Tensor, frames: torch.Tensor, total: int) -> torch.Tensor:
    """int64 [total]: where each frame begins among the samples."""
    before = torch.repeat_interleave(frames.cumsum(0) - frames, frames, output_size=total)
    spacing = torch.repeat_interleave(hop, frames, output_size=total)
    first = torch.repeat_interleave(offset[:-1], frames, output_size=total)
    return first + (torch.arange(total, device=offset.device) - before) * spacing


def _windows(samples: torch.Tensor) -> torch.Tensor:
    """Row i of this view is samples [i, i + 400): picking rows gathers frames without N x 400 indices."""
    return samples.as_strided((len(samples) - WINDOW + 1, WINDOW), (1, 1))


def _fast_on_cpu(samples: torch.Tensor, start: torch.Tensor, tables: Tables) -> torch.Tensor:
    """The frames, float32 [N, 128], that begin at `start` (int64 [N]) in mean-free float32 `samples`."""
    total = len(start)
    chunk = min(total, CHUNK_CPU)
    window, groups = tables
    # Fresh memory costs a CPU more than some of the arithmetic, so the chunks share theirs.
    framed, padded = torch.empty(chunk, WINDOW), torch.zeros(chunk, FFT)
    line = torch.zeros(chunk * WINDOW)
    result = torch.empty(total, BINS)
    for begin in range(0, total, chunk):
        n = min(chunk, total - begin)
        frames, flat, emphasised = framed[:n], framed[:n].view(-1), line[: n * WINDOW]
        torch.index_select(_windows(samples), 0, start[begin : begin + n], out=frames)
        frames -= frames.mean(dim=1, keepdim=True)
        # Pre-emphasis on all frames as one line of samples, four times as fast as row by row. It joins the first
        # sample of a frame to its neighbour's last, where Kaldi repeats the first; the window begins with 0, so
        # neither counts.
        torch.mul(flat[:-1], PREEMPHASIS, out=emphasised[1:])
        torch.sub(flat[1:], emphasised[1:], out=emphasised[1:])
        torch.mul(emphasised.view_as(frames), window, out=padded[:n, :WINDOW])
        energies = result[begin : begin + n]
        _filter_banks(_power(torch.view_as_real(torch.fft.rfft(padded[:n]))), groups, energies)
        energies.clamp_min_(FLOOR).log_()
    return result


def _fast_on_device(samples: torch.Tensor, start: torch.Tensor, tables: Tables, compiled: bool) -> torch.Tensor:
    """`_fast_on_cpu` in large chunks; what lies between transform and products is compiled where `compiled`."""
    total = len(start)
    chunk = _together(total)
    window, groups = tables
    # Where products and sums joined, the rounding would be another than Kaldi's.
    parts: list[Forward] = [_framed, _power, _log]
    framed, power, log = (compiled_function(part, True) for part in parts) if compiled else parts
    result = torch.empty(total, BINS, device=samples.device)
    for begin in range(0, total, chunk):
        some, mine = start[begin : begin + chunk], result[begin : begin + chunk]
        many = F.pad(some, (0, _together(len(some)) - len(some)))
        spectrum = torch.view_as_real(torch.fft.rfft(framed(samples, many, window)))
        _filter_banks(power(spectrum)[: len(some)], groups, mine)
    return log(result)  # type: ignore[no-any-return]


def _together(frames: int) -> int:
    """How many frames a GPU transforms for so many: the next power of two within its bounds."""
    return min(max(FEWEST_DEVICE, 1 << (frames - 1).bit_length()), CHUNK_DEVICE)


def _framed(samples: torch.Tensor, start: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """float32 [N, 512]: frames without their means, pre-emphasised, windowed, and 112 zeros. The first sample of a
    frame has no neighbour, and the window begins with 0: it is left out."""
    frames = torch.index_select(_windows(samples), 0, start)
    frames = frames - frames.mean(dim=1, keepdim=True)
    return F.pad((frames[:, 1:] - frames[:, :-1] * PREEMPHASIS) * window[1:], (1, FFT - WINDOW))


def _power(parts: torch.Tensor) -> torch.Tensor:
    """float32 [N, 257] of a spectrum [N, 257, 2]: re^2 + im^2, since abs() takes a root only to lose it."""
    parts = parts.square_() if parts.device.type == "cpu" else parts.square()
    return parts[..., 0] + parts[..., 1]


def _log(energies: torch.Tensor) -> torch.Tensor:
    return energies.clamp_min(FLOOR).log()


def _filter_banks(power: torch.Tensor, groups: list[tuple[int, int, int, torch.Tensor]], result: torch.Tensor) -> None:
    """Write the energies in the filters of `power` [n, 257] into `result` [n, 128]."""
    for low, high, first, weights in groups:
        torch.mm(power[:, low:high], weights, out=result[:, first : first + weights.shape[1]])


def _exact(
    samples: torch.Tensor, offset: torch.Tensor, hop: torch.Tensor, sizes: tuple[int, ...], bank: Bank = AST
) -> torch.Tensor:
    from torchaudio.compliance.kaldi import fbank  # takes a second to import, and only this mode needs it

    pieces, parameters = [], PARAMETERS | {"window_type": bank.window}
    for begin, spacing, size in zip(offset.tolist(), hop.tolist(), sizes):
        segment = samples[begin : begin + (size - 1) * spacing + WINDOW]
        # torchaudio truncates milliseconds to samples; half a sample more keeps rounding from losing one.
        pieces.append(fbank(segment[None], frame_shift=(spacing + 0.5) * 1000.0 / RATE, **parameters))
    return torch.cat(pieces)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No TF32 in here: ten bits of mantissa do not hold the energies of a loud and a silent bin."""
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def mel_weights() -> torch.Tensor:
    """Triangular filters, float32 [128, 257]: equal to torchaudio's `get_mel_banks`, with the Nyquist bin of zeros."""
    low, high = (1127.0 * math.log(1.0 + hertz / 700.0) for hertz in (LOW, RATE / 2.0))
    step = (high - low) / (BINS + 1)
    index = torch.arange(BINS)[:, None]
    left, centre, right = low + index * step, low + (index + 1.0) * step, low + (index + 2.0) * step
    mel = (1127.0 * (1.0 + RATE / FFT * torch.arange(FFT / 2) / 700.0).log())[None]
    slopes = torch.min((mel - left) / (centre - left), (right - mel) / (right - centre))
    return F.pad(slopes.clamp_min(0.0), (0, 1))


@functools.lru_cache(maxsize=16)
def _tables(device: torch.device, window: str) -> Tables:
    """(window [400] by its name, groups of filters); a group has only its own range of bins: (low, high, first mel,
    weights)."""
    weights = mel_weights()
    groups = []
    for first in range(0, BINS, BINS // GROUPS):
        group = weights[first : first + BINS // GROUPS]
        used = group.any(dim=0).nonzero()[:, 0]
        low, high = int(used[0]), int(used[-1]) + 1
        groups.append((low, high, first, _bring(group[:, low:high].T.contiguous(), device)))
    hann = torch.hann_window(WINDOW, periodic=False)
    return _bring(hann.pow(0.85) if window == "povey" else hann, device), groups


def _bring(table: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The table on the device, which is not waited for."""
    return (table.pin_memory() if torch.cuda.is_available() else table).to(device, non_blocking=True)


def normalise(log_mel: torch.Tensor, mean: float, std: float, compiled: bool = False) -> torch.Tensor:
    """(x - mean) / (2 * std): about zero mean and a standard deviation of one half (AST's convention). compiled: as in
    `log_mel`."""
    if compiled and len(log_mel) and log_mel.device.type != "cpu":
        return compiled_function(_normalised, True)(log_mel, mean, std)  # type: ignore[no-any-return]
    return _normalised(log_mel, mean, std)


def _normalised(log_mel: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    return (log_mel - mean) / (2.0 * std)


def patches(log_mel: torch.Tensor) -> torch.Tensor:
    """Cut frames [N, 128], N a multiple of 16, into patches [N // 16 * 8, 256].

    Time-major: patch number = (frame // 16) * 8 + mel // 16. Inside a patch, pixel 16 * t + f. Segments whose numbers
    of frames are multiples of 16 stay apart, so a ragged batch is cut in one go.
    """
    columns = len(log_mel) // PATCH
    grid = log_mel.reshape(columns, PATCH, BINS // PATCH, PATCH)
    return grid.transpose(1, 2).reshape(columns * (BINS // PATCH), PATCH * PATCH)


def cut(log_mel: torch.Tensor, frames: torch.Tensor, sizes: tuple[int, ...], stride: int = PATCH) -> torch.Tensor:
    """Patches [sum(columns * bands), 256] of segments of `frames` frames [N, 128]: `patches`, at any stride. Where that
    is below 16 they overlap in time and in frequency (AST: 10).

    Time-major within each segment, pixel 16 * t + f inside a patch. No patch reaches over the end of its segment; what
    is left of its frames, and of the mel bins, is in none. frames: int64 [S]; sizes: the same as Python numbers.
    """
    if stride == PATCH:
        return patches(log_mel)
    wide = columns(frames, stride)
    owner, column = frame_table(wide, tuple(columns(size, stride) for size in sizes))
    start = (frames.cumsum(0) - frames)[owner] + column * stride
    frame = start[:, None] + torch.arange(PATCH, device=start.device)
    tall = torch.index_select(log_mel, 0, frame.flatten()).unflatten(0, (-1, PATCH))  # [columns, 16, 128]
    return tall.unfold(2, PATCH, stride).transpose(1, 2).reshape(-1, PATCH * PATCH)


def unpatch(patches: torch.Tensor) -> torch.Tensor:
    """The inverse of `patches`: [P, 256] -> [P // 8 * 16, 128]."""
    columns = len(patches) // (BINS // PATCH)
    grid = patches.reshape(columns, BINS // PATCH, PATCH, PATCH)
    return grid.transpose(1, 2).reshape(columns * PATCH, BINS)


class RunningStatistics:
    """Mean and standard deviation over every bin of every frame added so far, in float64 (Chan et al. 1979).

    >>> statistics = RunningStatistics()
    >>> statistics.add(torch.tensor([[1.0, 3.0]]))
    >>> statistics.mean, statistics.std
    (2.0, 1.0)
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0  # sum of squared differences to the mean

    def add(self, log_mel: torch.Tensor) -> None:
        """Take in values of any shape."""
        if log_mel.numel():
            values = log_mel.double()
            mean = values.mean()
            self._join(values.numel(), float(mean), float((values - mean).square().sum()))

    def merge(self, other: RunningStatistics) -> None:
        """Take in what another one has seen."""
        if other.count:
            self._join(other.count, other.mean, other.squares)

    def _join(self, count: int, mean: float, squares: float) -> None:
        total = self.count + count
        distance = mean - self.mean
        self.mean += distance * count / total
        self.squares += squares + distance * distance * self.count * count / total
        self.count = total

    @property
    def std(self) -> float:
        """Standard deviation of the values seen (not of a population they were drawn from); 0 before any."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0
