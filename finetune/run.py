"""Fine-tuning and scoring, a round for every set of test folds and every seed.

Examples:
    python finetune/run.py esc50 init=runs/asit_b data=shards/esc50
    deepspeed --num_gpus 2 finetune/run.py esc10 init=runs/asit_tiny data=shards/esc10 folds.test=[[5]]
    deepspeed finetune/run.py whisper_at_tltr512 features=features/whisper_large data=shards/audioset
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from gamut.processes import watch_launcher

    watch_launcher()

from gamut.train.main import main_of

main = main_of("finetune")

if __name__ == "__main__":
    sys.exit(main())
