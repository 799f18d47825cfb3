"""What pyproject.toml cannot say: dependencies read from the pinned requirements, and the recipes as package data."""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def compatible(file: str) -> list[str]:
    """The requirements of a file of pins, opened to later fixes: `torch==2.11.0` becomes `torch~=2.11.0`.

    A version of one number, such as a date, has no fixes: that one or a later one will do.
    """
    lines = [line.partition("#")[0].strip() for line in (HERE / file).read_text(encoding="utf-8").splitlines()]
    pins = [line.split("==") for line in lines if line]
    return [f"{name}{'~=' if '.' in version else '>='}{version}" for name, version in pins]


setup(
    install_requires=compatible("requirements.txt"),
    extras_require={"test": compatible("requirements-test.txt"), "bench": compatible("bench/requirements.txt")},
    packages=[
        *find_packages(include=["gamut", "gamut.*", "pretrain", "finetune", "launchers", "launchers.*"]),
        "gamut.configs",
    ],
    package_dir={"gamut.configs": "configs"},
    package_data={"gamut": ["py.typed"], "gamut.configs": ["**/*.yaml"]},
    include_package_data=False,
)
