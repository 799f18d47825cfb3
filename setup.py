"""What pyproject.toml cannot say: dependencies read from the pinned requirements, and the recipes as package data."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
# Compiled against each other: torchaudio 2.11.1 cannot be imported beside torch 2.11.0, though its metadata allow it.
EXACT = ("torch", "torchaudio", "torchvision")


def compatible(file: str) -> list[str]:
    """The requirements of a file of pins, opened to later fixes: `torch==2.11.0` becomes `torch~=2.11.0`.

    A version of one number, such as a date, has no fixes: that one or a later one will do. `EXACT` ones stay as they
    are.
    """
    lines = [line.partition("#")[0].strip() for line in (HERE / file).read_text(encoding="utf-8").splitlines()]
    pins = [line.split("==") for line in lines if line]
    return [f"{name}{'==' if name in EXACT else '~=' if '.' in version else '>='}{version}" for name, version in pins]


def pinned(*names: str) -> list[str]:
    """Of the packages that the checks install, these: what a part of Gamut needs that most people do without."""
    wanted = {name.lower() for name in names}
    return [line for line in compatible("requirements-test.txt") if re.split(r"[~>\[]", line)[0].lower() in wanted]


setup(
    install_requires=compatible("requirements.txt"),
    extras_require={
        "export": pinned("onnx", "onnxscript", "onnxruntime"),
        "serve": pinned("gradio"),
        "events": pinned("sed_scores_eval"),
        "hear": ["hearvalidator~=2021.0"],  # brings TensorFlow
        "xares": ["xares~=0.1.3", "torchcodec~=0.11.1"],  # the latter is what torchaudio 2.11 decodes with
        "test": compatible("requirements-test.txt"),
        "bench": compatible("bench/requirements.txt"),
    },
    packages=[
        *find_packages(include=["gamut", "gamut.*", "pretrain", "finetune", "launchers", "launchers.*"]),
        "gamut.configs",
    ],
    package_dir={"gamut.configs": "configs"},
    package_data={"gamut": ["py.typed", "models/shipped/**/*"], "gamut.configs": ["**/*.yaml"]},
    include_package_data=False,
)
