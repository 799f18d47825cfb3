"""Pretraining: ASiT, or the objective that the recipe names.

Examples:
    python pretrain/run.py asit_tiny data=shards/esc10
    deepspeed --num_gpus 2 pretrain/run.py asit_tiny data=shards/esc10 run.name=first_try
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from gamut.processes import watch_launcher

    watch_launcher()

from gamut.train.main import main_of

main = main_of("pretrain")

if __name__ == "__main__":
    sys.exit(main())
