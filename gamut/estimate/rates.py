"""What devices can do: vendors' peaks, what of them is assumed to be reached, and rates that were measured.

Peaks are dense (without sparsity), of the largest SKU of each name. The shares that are reached are assumptions, named
as such; `measure` replaces them, and the peaks, by what this machine's device does.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from gamut.errors import RunError

TERA, GIGA, MICRO = 1e12, 1e9, 1e-6


@dataclass(frozen=True)
class Rates:
    """Of one device, as a step sees them."""

    name: str
    kind: str  # cuda | cpu
    peak: float  # FLOP/s in bf16, for the MFU
    half: float  # FLOP/s of matrix products in bf16 that are reached
    single: float  # and in float32 (TF32 is off)
    attention: float  # FLOP/s of variable-length attention in bf16
    bytes: float  # bytes/s of device memory that are reached
    memory: float  # bytes of device memory
    link: float  # bytes/s between GPUs of a node, each way, a GPU
    network: float  # bytes/s between nodes, each way, a GPU
    call: float  # seconds of the host for a call in the forward
    backward: float  # and in the backward, which C++ makes
    launch: float  # seconds of the device for a kernel that does next to nothing
    wait: float  # seconds from the end of the device's work until the host goes on
    source: str
    calls: dict[str, float] = field(default_factory=dict)  # bytes/s of single calls that were measured
    small: tuple[float, float] | None = None  # a product of so many operations, and the share of the rate it reaches

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


@dataclass(frozen=True)
class Sheet:
    """A vendor's data sheet: TFLOP/s, GB, GB/s."""

    half: float
    single: float
    memory: float
    bandwidth: float
    link: float  # each way
    source: str


SHEETS = {
    "h100": Sheet(989, 67, 80, 3350, 450, "https://www.nvidia.com/en-us/data-center/h100/ (SXM)"),
    "h200": Sheet(989, 67, 141, 4800, 450, "https://www.nvidia.com/en-us/data-center/h200/ (SXM)"),
    "a100": Sheet(312, 19.5, 80, 2039, 300, "https://www.nvidia.com/en-us/data-center/a100/ (SXM, 80 GB)"),
    "l40s": Sheet(362, 91.6, 48, 864, 32, "https://www.nvidia.com/en-us/data-center/l40s/ (PCIe 4.0)"),
    "4090": Sheet(165, 82.6, 24, 1008, 32, "NVIDIA Ada GPU architecture whitepaper, appendix A (PCIe 4.0)"),
}

# Assumptions, until a GPU has been measured.
MATMUL = 0.60  # of the peak: widths of 768 leave about that much to a product without heavy fusion
SINGLE = 0.70
ATTENTION = 0.35  # of the peak: flash attention 2 at a few hundred tokens a segment
BANDWIDTH = 0.80
LINK = 0.80
NETWORK = 50 * GIGA  # bytes/s a GPU: 400 Gb/s, one adapter each
CALL, BACKWARD = 9 * MICRO, 6 * MICRO  # Python, torch's dispatch and autograd; C++ alone
LAUNCH = 2.5 * MICRO
WAIT = 25 * MICRO
CONTEXT = 1.5 * GIGA  # bytes of a GPU that CUDA, cuBLAS and NCCL take for themselves

ASSUMED = (
    f"{MATMUL:.0%} of the peak in matrix products, {ATTENTION:.0%} in attention, {BANDWIDTH:.0%} of the memory's "
    f"bandwidth, {LINK:.0%} of the link's, {NETWORK / GIGA:.0f} GB/s of network a GPU, {CALL / MICRO:.0f} us of the "
    f"host a call ({BACKWARD / MICRO:.0f} in the backward), {LAUNCH / MICRO:.1f} us of the device a launch"
)


def of_sheet(name: str) -> Rates:
    """A GPU by its name. Raises KeyError for one that is not in SHEETS."""
    sheet = SHEETS[name]
    return Rates(
        name=name,
        kind="cuda",
        peak=sheet.half * TERA,
        half=sheet.half * TERA * MATMUL,
        single=sheet.single * TERA * SINGLE,
        attention=sheet.half * TERA * ATTENTION,
        bytes=sheet.bandwidth * GIGA * BANDWIDTH,
        memory=sheet.memory * GIGA,
        link=sheet.link * GIGA * LINK,
        network=min(NETWORK, sheet.link * GIGA) * LINK,
        call=CALL,
        backward=BACKWARD,
        launch=LAUNCH,
        wait=WAIT,
        source=sheet.source,
    )


def read(path: Path) -> Rates:
    """Rates that `measure` wrote. Raises RunError where the file holds none."""
    try:
        found = json.loads(path.read_text())
        names = {one.name for one in fields(Rates)}
        if set(found) != names:
            raise ValueError(f"it has {', '.join(sorted(set(found) ^ names))} too many or too few")
        return Rates(**found | {"small": tuple(found["small"]) if found["small"] else None})
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"{path} holds no rates of a device ({error}). Measure some: `python -m gamut.estimate --measure {path}`."
        ) from error
