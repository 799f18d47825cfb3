"""The proof on a machine with one GPU: what must hold, and then how fast it is, the account's forecast beside it.

    make bench-gpu
    python -m bench.gpu --only "steps published" --out rows.md
    python -m bench.gpu --device cpu --tiny             the same code on the smallest sizes

It needs torch and the project's wheels, and no network; what a part lacks is said in its row. Ends with 1 where
a part failed; the others run all the same. Rows for bench/RESULTS.md go to --out, or to the terminal.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from bench.gpu import correct, kernels
from bench.gpu.parts import LeftOut, Part, Row, Setting, run
from gamut.estimate.measure import measure
from gamut.estimate.rates import Rates

CORRECT = {
    "tests": correct.tests,
    "attention is right": correct.attends,
    "log-mel is right": correct.mels,
    "packed is alone": correct.packed,
    "bf16 is fp32": correct.precisions,
    "deterministic": correct.determinism,
}
TIMED = {"attention": kernels.attends, "log-mel": kernels.mels}
FLOWS = ("evaluation", "features", "heads", "feed")
NAMES = ("rates", *CORRECT, "resume", *TIMED, "published", *FLOWS, "steps")


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "There is no GPU that torch can use here (--device cpu --tiny is the same code on a CPU).", file=sys.stderr
        )
        return 2
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product: for deterministic kernels
    setting = Setting(device, options.tiny, time.monotonic() + 60 * options.minutes)
    wanted = {name: part for name, part in parts(setting).items() if name in (options.only or NAMES)}
    rows: list[tuple[str, Row]] = []
    failed: dict[str, str] = {}
    left: dict[str, str] = {}
    for name, found in run(wanted, setting):
        if isinstance(found, Row):
            rows.append((name, found))
            print(f"  {line_of(found)}", flush=True)
        else:
            said = str(found).splitlines()[0] if str(found) else type(found).__name__
            (left if isinstance(found, (LeftOut, ImportError)) else failed)[name] = said
    written = "\n".join([f"## {where(device)}", "", *table(rows), ""])
    if options.out:
        options.out.write_text(written)
    else:
        print(written)
    for name, why in left.items():
        print(f"left out: {name}: {why}")
    for name, why in failed.items():
        print(f"FAILED: {name}: {why}")
    return 1 if failed else 0


def parts(setting: Setting) -> dict[str, Part]:
    """In the order in which they run. Forecasts are made, by processes of their own, while correctness is looked at."""
    made: list[object] = []

    def rates(setting: Setting) -> Iterator[Row]:
        found: Rates = measure(setting.device)
        yield Row("matrix products in bf16", found.half / 1e12, "TFLOP/s")
        yield Row("matrix products in float32", found.single / 1e12, "TFLOP/s")
        yield Row("attention in bf16", found.attention / 1e12, "TFLOP/s")
        yield Row("memory", found.bytes / 1e12, "TB/s")
        yield Row("a call of the host", found.call * 1e6, "us")
        from bench.gpu.steps import Forecasts

        made.append(Forecasts(setting, found))

    def steps(setting: Setting) -> Iterator[Row]:
        from bench.gpu.steps import Forecasts, timed

        forecasts = made[0] if made else Forecasts(setting, None)
        yield from timed(setting, forecasts)  # type: ignore[arg-type]

    def late(module: str, name: str, setting: Setting) -> Iterator[Row]:
        """A part whose imports may not be here, which is then its own failure alone."""
        yield from getattr(__import__(f"bench.gpu.{module}", fromlist=[name]), name)(setting)

    found: dict[str, Part] = {"rates": rates, **CORRECT, "resume": partial(late, "flows", "resume"), **TIMED}
    found["published"] = partial(late, "steps", "published")
    found |= {name: partial(late, "flows", name) for name in FLOWS}
    return found | {"steps": steps}  # last: as many of them as there is time for


def where(device: torch.device) -> str:
    """Device, driver, torch."""
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
    from gamut.accelerator import driver

    name = torch.cuda.get_device_name(device)
    return f"{name}, driver {driver() or asked_driver()}, CUDA {torch.version.cuda}, torch {torch.__version__}"


def asked_driver() -> str:
    """What nvidia-smi says, where the kernel does not."""
    line = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(line, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def line_of(row: Row) -> str:
    beside = "" if row.ratio is None else f", forecast {row.forecast:,.4g} ({row.ratio:.2f} of it)"
    return f"{row.what}: {row.value:,.4g} {row.unit}{beside}"


def table(rows: list[tuple[str, Row]]) -> list[str]:
    """Lines of Markdown."""
    shown = ["| part | what | tokens | measured | | forecast | forecast / measured | note |"]
    shown.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, row in rows:
        tokens = f"{row.tokens:,}" if row.tokens else ""
        forecast = "" if row.forecast is None else f"{row.forecast:,.4g}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        shown.append(
            f"| {name} | {row.what} | {tokens} | {row.value:,.4g} | {row.unit} | {forecast} | {ratio} | {row.note} |"
        )
    return shown


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="PART", help=f"some of: {', '.join(NAMES)}")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes")
    parser.add_argument("--minutes", type=float, default=7.5, help="no piece is begun after so long (default 7.5)")
    parser.add_argument("--out", type=Path, help="where to write the rows")
    return parser


if __name__ == "__main__":
    sys.exit(main())
