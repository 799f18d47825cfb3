"""A shard set as a task of HEAR and as one of X-ARES, in the layouts that their own programs read."""

from __future__ import annotations

import csv
import io
import json
import re
from itertools import islice
from pathlib import Path

import soundfile

from gamut.audio.decode import encode_flac
from gamut.benchmarks.clips import Labelled
from gamut.errors import ShardError
from gamut.files import write_text
from gamut.numbers import RATE

METADATA, VOCABULARY = "task_metadata.json", "labelvocabulary.csv"
EVENT_SCORES = ["event_onset_200ms_fms", "segment_1s_er"]  # as of HEAR's own task of events, DCASE 2016
TAR = 1000  # clips of a tar of X-ARES, at most
X_ARES = '''"""A task of X-ARES, written by Gamut: the clips of {name}."""

from pathlib import Path

import numpy as np
from xares.task import TaskConfig

CLASSES = {classes}


def several(about):
    target = np.zeros(CLASSES, np.float32)
    target[about["labels"]] = 1
    return target


def {task}_config(encoder):
    return TaskConfig(
        encoder=encoder,
        name="{task}",
        env_root=Path(__file__).resolve().parent,
        private=True,  # its clips are here, and not to be fetched
        k_fold_splits={folds},
        output_dim=CLASSES,
        eval_weight={scored},
        {options},
    )
'''


def write_hear(clips: Labelled, folder: Path, name: str) -> Path:
    """Write the task `folder`/`name` and return its folder: `task_metadata.json`, written last, `labelvocabulary.csv`,
    and of each split SPLIT.json (file -> labels, or events in milliseconds) and 16000/SPLIT/FILE.wav.

    Raises ShardError where it is there already.
    """
    task = _new(folder / name)
    index, one = clips.index, clips.one_label
    splits = {f"fold{n:02d}" if clips.folds else split: split for n, split in enumerate(clips.splits)}
    lengths = set()
    for there, split in splits.items():
        (task / str(RATE) / there).mkdir(parents=True)
        for row, waveform in clips.waveforms(split):
            lengths.add(len(waveform))
            soundfile.write(task / str(RATE) / there / f"{clips.name(row)}.wav", waveform, RATE, "PCM_16")
        told = clips.events if clips.timed else clips.labels
        said = {f"{clips.name(row)}.wav": told(row) for row in clips.splits[split].tolist()}
        write_text(task / f"{there}.json", json.dumps(said, indent=1))
    table = io.StringIO()
    csv.writer(table).writerows([("idx", "label"), *enumerate(index.labels)])
    write_text(task / VOCABULARY, table.getvalue())
    metadata = {
        "task_name": name,
        "version": f"gamut-{index.fingerprint[:8]}",
        "embedding_type": "event" if clips.timed else "scene",
        "prediction_type": "multiclass" if one and not clips.timed else "multilabel",
        "split_mode": "presplit_kfold" if clips.folds else "trainvaltest",
        "splits": list(splits),
        "sample_duration": lengths.pop() / RATE if len(lengths) == 1 else None,  # None: one clip at a time
        "evaluation": EVENT_SCORES if clips.timed else ["top1_acc"] if one else ["mAP", "d_prime", "aucroc"],
    }
    write_text(task / METADATA, json.dumps(metadata, indent=1))
    return task


def write_xares(clips: Labelled, folder: Path, name: str) -> Path:
    """Write the task `folder`/`name`, tars of KEY.flac and KEY.json, and `folder`/`name`_task.py, which is returned.

    Raises ShardError where it is there already.
    """
    from webdataset import TarWriter

    task = re.sub(r"\W", "_", name)
    place = _new(folder / task)
    for number, split in enumerate(clips.splits, 1):
        there = f"wds-audio-fold-{number}-" if clips.folds else f"{split}-"
        waveforms = clips.waveforms(split)
        for tar in range(-(-len(clips.splits[split]) // TAR)):
            with open(place / f"{there}{tar:05d}.tar", "wb") as file, TarWriter(file, encoder=False, mtime=0) as sink:
                for row, waveform in islice(waveforms, TAR):
                    ids = clips.index.label_ids(row).tolist()
                    about = {"label": ids[0], "labels": ids, "names": clips.labels(row)}
                    sample = {"__key__": clips.name(row), "flac": encode_flac(waveform)}
                    sink.write(sample | {"json": json.dumps(about).encode()})
    (place / ".audio_tar_ready").touch()
    one = 'label_processor=lambda about: about["label"]'
    several = (
        'label_processor=several,\n        criterion="BCEWithLogitsLoss",\n        metric="mAP",\n        do_knn=False'
    )
    scored = clips.splits[next(iter(clips.splits)) if clips.folds else "test"]
    program = X_ARES.format(
        name=clips.index.name,
        task=task,
        classes=len(clips.index.labels),
        folds=list(range(1, len(clips.splits) + 1)) if clips.folds else None,
        scored=len(scored),
        options=one if clips.one_label else several,
    )
    write_text(folder / f"{task}_task.py", program)
    return folder / f"{task}_task.py"


def _new(folder: Path) -> Path:
    """Makes the folder. Raises ShardError where something is in it, or it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = next(folder.iterdir(), None)
    except OSError as error:
        raise ShardError(f"{folder} cannot be made: {error.strerror or error}.") from error
    if there is not None:
        raise ShardError(f"{folder} is there already, and not empty: remove it, or give another name with --name.")
    return folder
