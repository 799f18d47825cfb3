"""What a newcomer types wrong, on the first day: each mistake is a sentence that says what is wrong and what to do."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gamut.commands import COMMANDS

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards (four folds), runs and features of an earlier day, sounds, and files of other kinds."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name in ("shards", "runs", "features"):
        shutil.copytree(FIXTURES / name, folder / name)
    rng = np.random.default_rng(0)
    for name in ("raw/dog/1", "raw/rain/2", "flat/3", "ok"):
        path = folder / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(scale=0.1, size=8000), 16000)
    (folder / "empty").mkdir()
    (folder / "README.md").write_text("# About\n\nNothing that could be weights, shards or sound.\n")
    (folder / "song.wav").write_text("no sound")
    (folder / "text.safetensors").write_text("not weights at all, but some text")
    (folder / "none.safetensors").write_bytes(b"")
    (folder / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    (folder / "t.csv").write_text("file,labels\na.wav,dog\n")
    (folder / "label.csv").write_text("path,label\nok.wav,dog\n")
    (folder / "open.yaml").write_text("optim: {lr: 1e-3\n")
    (folder / "tab.yaml").write_text("optim:\n\tlr: 1\n")
    (folder / "list.yaml").write_text("- a\n- b\n")
    (folder / "circle.yaml").write_text("defaults: circle.yaml\n")
    (folder / "base.yaml").write_text("defaults: asit_tinny\n")
    return folder


TINY = "pretrain asit_tiny data=shards "
SCORED = "finetune own data=shards folds.test=[[4]] "
# what is typed, and what is said
MISTAKES = [
    # the command line of a stage
    ("finetune esc11 data=shards", "no finetune recipe called 'esc11'; the nearest valid name is esc10"),
    (
        "finetune asit_tiny data=shards",
        "'asit_tiny' is a pretrain recipe, not a finetune one: gamut pretrain asit_tiny",
    ),
    ("pretrain esc50 data=shards", "'esc50' is a finetune recipe, not a pretrain one: gamut finetune esc50"),
    ("pretrain whisper data=shards", "'whisper' is a features recipe, not a pretrain one: gamut features extract"),
    ("pretrain mine.yaml data=shards", "There is no recipe file mine.yaml"),
    ("pretrain ./open.yaml", "open.yaml is not valid YAML at line 2: expected ',' or '}'"),
    ("pretrain ./tab.yaml", "tab.yaml is not valid YAML at line 2: found character '\\t'"),
    ("pretrain ./list.yaml", "list.yaml must consist of `key: value` lines"),
    ("pretrain ./circle.yaml", "inherit each other in a circle: circle -> circle; remove one of their `defaults`"),
    ("pretrain ./base.yaml", "no pretrain recipe called 'asit_tinny' (needed by base.yaml); the nearest valid name is"),
    (TINY + "shards", "'shards' on the command line is not an override; write key=value, such as optim.lr=3e-4"),
    ("pretrain asit_tiny data shards", "is not an override; write key=value, such as data=shards"),
    (TINY + "optim.lr = 1e-3", "is not an override; write key=value, such as optim.lr=1e-3"),
    (TINY + "--optim.lr 1e-3", "Unknown option --optim.lr: keys of the recipe are given as optim.lr=VALUE"),
    (TINY + "--epochs=3", "Unknown option --epochs=3: keys of the recipe are given as epochs=VALUE"),
    (TINY + "--dryrun", "Unknown option --dryrun; the nearest valid name is --dry-run"),
    # keys and values
    (
        TINY + "optim.learning_rate=1e-3",
        "Unknown key optim.learning_rate on the command line; it is called optim.lr here",
    ),
    (TINY + "batch_size=8", "Unknown key batch_size on the command line; it is called step.clips here"),
    (TINY + "num_workers=8", "it is called loader.workers here"),
    (TINY + "gpus=2", "Unknown key gpus on the command line; the number of GPUs is the launcher's"),
    (TINY + "device=cuda", "a run takes the GPUs of the machine; for the CPU set DS_ACCELERATOR=cpu"),
    (TINY + "resume=true", "the same command again goes on from the last checkpoint"),
    (TINY + "optim.lr=fast", "optim.lr on the command line must be a number, not 'fast'"),
    (TINY + "optim.lr=1e-3,1e-4", "optim.lr on the command line must be a number, not '1e-3,1e-4'"),
    (TINY + "epochs=0", "epochs on the command line must be at least 1, not 0"),
    (TINY + "epochs=1.5", "epochs on the command line must be a whole number, not 1.5"),
    (TINY + "precision=float32", "precision on the command line must be fp32, bf16 or fp16, not 'float32'"),
    (TINY + "model.heads=5", "model.dim (192) must be a multiple of model.heads (5)"),
    (TINY + "views.frames=100", "views.frames on the command line must be a multiple of 16, for example 96, not 100"),
    (TINY + "finetune.loss=ce", "The section finetune on the command line is for finetune recipes: remove it"),
    (TINY + "deepspeed.zero_optimisation.stage=2", "no setting `deepspeed.zero_optimisation`; the nearest it has is"),
    (TINY + "subset.flod=1", "The shards in shards have no column flod; its columns are fold, target"),
    (TINY + "subset.fold=9", "selects no clip of shards, where fold is 1, 2, 3, 4"),
    # data
    ("pretrain asit_tiny data=nowhere", "There are no shards at nowhere. Make them with"),
    ("pretrain asit_tiny data=README.md", "data=README.md is a file. Name the folder that"),
    ("pretrain asit_tiny data=raw", "raw holds sounds, not shards. Convert them into another folder, and name that"),
    ("pretrain asit_tiny data=flat", "flat holds sounds, not shards. Convert them into another folder, and name that"),
    ("pretrain asit_tiny data=empty", "There are no shards in empty. Make them"),
    # folds
    ("finetune own data=shards", "The recipe names the folds [5], but shards has [1, 2, 3, 4]: set folds.test"),
    ("finetune own data=shards folds.test=[4]", "folds.test on the command line must be a list of lists"),
    (SCORED + "folds.train=[3,4]", "fold 4 is both in folds.train and in a round of folds.test"),
    (
        SCORED + "folds.column=split",
        "have no column split; its columns are fold, target. To score by another column, set",
    ),
    # where weights start from
    (SCORED + "init=runs/nosuch", "init=runs/nosuch: runs/nosuch: there is no such file or folder. Name a run"),
    (SCORED + "init=README.md", "README.md is no file of weights, neither safetensors nor what torch.save wrote"),
    (SCORED + "init=ok.wav", "ok.wav is no file of weights"),
    (
        SCORED + "init=text.safetensors",
        "33 bytes and is cut off, or of another kind. Name a run, a checkpoint or weights",
    ),
    (SCORED + "init=none.safetensors", "none.safetensors is not a whole safetensors file"),
    (SCORED + "init=lfs.safetensors", "it is a pointer of Git LFS, so fetch the file itself"),
    (SCORED + "init=runs", "runs is a folder of runs: name one of the runs in it: runs/asit"),
    (SCORED + "init=empty", "empty is neither a run nor a checkpoint with a model in it"),
    # a run that is there
    ("pretrain asit_tiny data=shards run.name=asit", "The run at runs/asit was started with another recipe"),
    # shards
    ("shards convert foler raw out", "There is no data set 'foler'; the nearest valid name is folder"),
    ("shards convert folder nowhere out", "nowhere is not a folder"),
    ("shards convert folder raw raw", "The shards cannot be written to raw: it is SRC itself"),
    ("shards convert folder raw README.md", "The shards cannot be written to README.md: it is not a folder"),
    ("shards convert folder flat out", "For sounds without classes, or with several, write a table"),
    ("shards convert folder empty out", "empty has no sound files in class folders (found: nothing)"),
    ("shards convert folder raw out --only train", "raw has no split train; it has no splits"),
    ("shards convert folder raw out --folds 1", "'1' is not a number of folds: 2 to 1000, or 0 for none"),
    ("shards convert csv t.csv out", "has no column path; it has file, labels"),
    ("shards convert csv label.csv out", "classes belong into the column `labels`"),
    ("shards convert csv raw out", "raw must hold one .csv file, but holds none. Give the file itself as SRC"),
    ("shards convert esc50 raw out", "raw does not have the layout of ESC-50: it has no audio"),
    ("shards stats raw", "raw holds sounds, not shards. Convert them into another folder, and name that"),
    ("shards stats README.md", "README.md is a file. Name the folder that"),
    ("shards verify nowhere", "There are no shards in nowhere. Make them"),
    ("shards index raw", "raw holds sounds, not shards. Convert them into another folder, and name that"),
    ("shards show shards nosuch", "There is no clip nosuch among the 24 in shards"),
    # tags, embeddings, exports, pages
    (
        "tag runs/asit ok.wav",
        "of a pretraining, has no classes: fine-tune from it first for tags, or take its embeddings",
    ),
    ("tag runs/validated nosuch.wav", "nosuch.wav cannot be read: No such file or directory"),
    ("tag runs/validated song.wav", "song.wav is not a sound file"),
    ("tag runs/nosuch ok.wav", "There is nothing that tags at runs/nosuch: name a fine-tuning run"),
    ("tag README.md ok.wav", "README.md is no file of weights"),
    ("tag runs/validated empty", "There is no sound file in empty"),
    ("embed runs/asit ok.wav --out x.txt", "its ending must be one of .npz, .parquet, .safetensors"),
    ("export runs/nosuch --to hf out", "runs/nosuch: there is no such file or folder. Name a run"),
    ("export runs/asit --to pytorch out", "invalid choice: 'pytorch' (choose from 'hf', 'timm'"),
    ("serve runs/asit", "has no classes: fine-tune from it first for tags"),
    # what lies in a folder of runs
    ("report runs/nosuch", "runs/nosuch is not a folder. Name a folder of runs, a run"),
    ("runs show nosuch", "nosuch is not a folder. Name a folder of runs, a run"),
    ("runs show asiit", "asiit is not a folder; the nearest valid name is asit. Name a folder of runs, a run"),
    ("probe runs/validated", "is a fine-tuning of several rounds. Name a pretraining, or the folder of one round"),
    ("probe runs", "runs is a folder of runs. Name one of them, such as runs/asit"),
    ("probe runs/nosuch", "There is no runs/nosuch. Name a run folder, a checkpoint or a file of weights"),
    ("sweep runs/asit", "The run runs/asit is pretraining; a sweep is over models that are fine-tuned on sound"),
    ("curve runs/nosuch esc10", "runs/nosuch keeps no checkpoints yet"),
    # features and analyses
    ("features extract whisper_tiny_esc50 init=nosuch data=shards", "nosuch: there is no such file or folder"),
    ("features info nosuch", "There is no cache of features in nosuch. Make one"),
    ("analyse layers shards nosuch", "There is no cache of features in nosuch. Make one"),
    ("analyse layers shards features --folds split", "have no column split; its columns are fold, target"),
    # what it would take
    ("estimate asit_b --gpu h1000", "invalid choice: 'h1000' (choose from 'h100'"),
    ("estimate asit_b --nodes 0", "'0' is not a whole number of 1 or more"),
]


def files(place: Path) -> list[Path]:
    """All but what a run of an earlier version is given when it is opened: the numbers that its shards have."""
    return sorted(path for path in place.rglob("*") if path.name != "front.json")


@pytest.mark.parametrize(("typed", "said"), MISTAKES, ids=[typed for typed, _ in MISTAKES])
def test_a_mistake_is_a_sentence(
    place: Path, typed: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before = files(place)
    name, *words = typed.split()
    try:
        status = importlib.import_module(COMMANDS[name][0]).main(words)
    except SystemExit as end:  # argparse
        status = end.code
    assert status == 2
    told = " ".join(capsys.readouterr().err.split())
    assert said in told
    assert "Traceback" not in told
    assert files(place) == before  # nothing was begun


def test_there_are_many() -> None:
    assert len({typed for typed, _ in MISTAKES}) == len(MISTAKES) >= 90


def test_a_set_without_folds_is_told_how_it_gets_some(place: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shards = importlib.import_module(COMMANDS["shards"][0]).main
    assert shards(["convert", "folder", str(place / "raw"), "bare", "--folds", "0", "--workers", "1"]) == 0
    for line in ("finetune own data=bare", "analyse layers bare nosuch"):
        name, *words = line.split()
        assert importlib.import_module(COMMANDS[name][0]).main(words) == 2
        told = capsys.readouterr().err
        assert (
            "The shards in bare have no column fold; it has none. To give them folds, make the set again with" in told
        )
        assert "--folds 5`, in another FOLDER" in told
