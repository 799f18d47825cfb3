"""Hours of sound through a pipe into `gamut tag MODEL -`, faster than it lasts: memory, and how soon tags come.

    python bench/streaming.py runs/esc10 --hours 3 --speed 50

Writes noise in blocks of a tenth of a second, as a recorder would, at so many times real time, and reads the tags as
they are written. Prints the resident memory after a tenth of the stream and at its end, and how many seconds of the
clock tags came after the last sample of their span was due.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RATE = 16_000
BLOCK = RATE // 10  # samples


def memory(process: int) -> int:
    """Resident, in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) // 1000 if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what `gamut tag` takes")
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--speed", type=float, default=50.0, help="times real time")
    parser.add_argument("--every", default="2", help="seconds of a span")
    options = parser.parse_args()
    line = [sys.executable, "-m", "gamut.tag", options.model, "-", "--every", options.every, "--top", "1"]
    process = subprocess.Popen(
        [*line, "--format", "csv"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=False
    )
    assert process.stdin is not None
    assert process.stdout is not None
    lines = process.stdout
    lines.readline()  # the names of the columns: the model is open
    begin = time.monotonic()
    late: list[float] = []

    def read() -> None:
        for text in lines:
            end = float(text.split(b",")[2])
            late.append(time.monotonic() - begin - end / options.speed)

    reader = threading.Thread(target=read)
    reader.start()
    noise = (np.random.default_rng(0).normal(0, 3000, 601 * BLOCK)).astype("<i2")
    blocks = round(options.hours * 36_000)
    early = behind = 0.0
    for number in range(blocks):
        due = begin + (number + 1) / 10 / options.speed  # a block is there when it has been heard to its end
        time.sleep(max(0.0, due - time.monotonic()))
        first = number % 601 * BLOCK
        process.stdin.write(noise[first : first + BLOCK].tobytes())
        process.stdin.flush()
        behind = max(behind, time.monotonic() - due)
        early = memory(process.pid) if number == blocks // 10 else early
    last = memory(process.pid)
    process.stdin.close()
    process.wait()
    reader.join()
    took = time.monotonic() - begin
    print(
        f"{options.hours:g} h in {took:.0f} s ({3600 * options.hours / took:.1f} times real time), {len(late):,} spans"
    )
    print(f"memory after a tenth {early:,.0f} MB, at the end {last:,.0f} MB")
    middle, most = np.quantile(late, [0.5, 0.99])
    print(f"tags came after {middle:.2f} s (median), {most:.2f} s (99 %), {max(late):.2f} s at most")
    print(f"the pipe was full for {behind:.2f} s at most")


if __name__ == "__main__":
    main()
