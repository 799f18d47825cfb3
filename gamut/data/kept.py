"""Where the plans of a run are kept: an epoch a folder, or of a large set a block of one, with the borders between
them."""

from __future__ import annotations

import base64
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gamut.data.plans import ensure_epoch, load_epoch
from gamut.errors import PlanError
from gamut.files import appears, require_digest, with_digest, write_text
from gamut.plan import (
    Border,
    Catalogue,
    Clips,
    Epoch,
    Policy,
    block_count,
    digest,
    plan_block,
    plan_epoch,
    plan_fingerprint,
)
from gamut.plan.blocks import KEPT
from gamut.plan.lanes import Spread

Make = Callable[[Callable[[Spread], Epoch]], Epoch]  # with `map`, or with the `map` of several processes


def alone(plan: Callable[[Spread], Epoch]) -> Epoch:
    """Plan in this process."""
    return plan(map)


class Kept(ABC):
    """The plans of a run, each named by the number of its epoch and its block (0 where an epoch is one), in a folder
    below `folder` that is named by their fingerprint."""

    def __init__(self, folder: Path, clips: Clips | Catalogue, seed: int, policy: Policy) -> None:
        self.clips, self.seed, self.policy = clips, seed, policy
        self.fingerprint = plan_fingerprint(clips, seed, policy)
        self.folder = folder / digest(self.fingerprint)

    @abstractmethod
    def path(self, number: int, block: int = 0) -> Path:
        """Where a plan is saved: names sort in the order of the run."""

    @abstractmethod
    def expected(self, number: int, block: int = 0) -> dict[str, str]:
        """The fingerprint of a plan."""

    @abstractmethod
    def block_of(self, number: int, step: int) -> int:
        """The block of the epoch that has a step of it; the last where there is no such step."""

    @abstractmethod
    def ensure(self, number: int, block: int = 0, make: Make = alone) -> Epoch:
        """The plan, mapped; made and saved first where it is missing. Raises PlanError as `ensure_epoch` does."""

    def load(self, number: int, block: int = 0) -> Epoch:
        """The plan that is saved, unverified. Raises PlanError where it is not there, or damaged."""
        return load_epoch(self.path(number, block), self.expected(number, block), verify=False)

    def remove_before(self, number: int, block: int = 0) -> None:
        """Remove the plans before the one that comes before this, which every rank has finished."""
        saved = sorted(self.folder.glob("epoch-*/"))
        for folder in [one for one in saved if one.name < self.path(number, block).name][:-1]:
            shutil.rmtree(folder, ignore_errors=True)


class Epochs(Kept):
    """Each epoch is one plan."""

    clips: Clips

    def path(self, number: int, block: int = 0) -> Path:
        return self.folder / f"epoch-{number:05d}"

    def expected(self, number: int, block: int = 0) -> dict[str, str]:
        return self.fingerprint | {"epoch": str(number)}

    def block_of(self, number: int, step: int) -> int:
        return 0

    def ensure(self, number: int, block: int = 0, make: Make = alone) -> Epoch:
        def plan() -> Epoch:
            return make(lambda spread: plan_epoch(self.clips, self.seed, number, self.policy, spread))

        return ensure_epoch(self.path(number), plan, self.expected(number))


class Blocks(Kept):
    """Each block of an epoch is a plan. Beside it lies the border after it, which stays when the plan is removed: a run
    that goes back, or on, plans the block that it needs and none before it."""

    clips: Catalogue

    def __init__(self, folder: Path, clips: Catalogue, seed: int, policy: Policy) -> None:
        super().__init__(folder, clips, seed, policy)
        self.blocks = block_count(clips, policy)

    def path(self, number: int, block: int = 0) -> Path:
        return self.folder / f"epoch-{number:05d}-block-{block:05d}"

    def border_path(self, number: int, block: int) -> Path:
        """Where the border after a block is saved."""
        return self.path(number, block).with_suffix(".json")

    def expected(self, number: int, block: int = 0) -> dict[str, str]:
        return self.fingerprint | {"epoch": str(number), "part": f"{block} of {self.blocks}"}

    def block_of(self, number: int, step: int) -> int:
        known = sorted(self.folder.glob(f"epoch-{number:05d}-block-*.json"))
        block = 0
        for path in reversed(known):  # a run mostly goes on near the newest
            if _load(path).steps <= step:
                block = min(int(path.stem.rsplit("-", 1)[1]) + 1, self.blocks - 1)
                break
        while block + 1 < self.blocks and self._after(number, block).steps <= step:
            block += 1
        return block

    def ensure(self, number: int, block: int = 0, make: Make = alone) -> Epoch:
        for one in range(self._first_without(number, block), block):  # their borders are lost
            self._ensure(number, one, alone)
        return self._ensure(number, block, make)

    def _first_without(self, number: int, block: int) -> int:
        """The first block of those just before this one whose border is missing."""
        while block and not self.border_path(number, block - 1).exists():
            block -= 1
        return block

    def _ensure(self, number: int, block: int, make: Make) -> Epoch:
        path = self.path(number, block)
        if path.exists() and not appears(self.border_path(number, block)):
            shutil.rmtree(path, ignore_errors=True)  # half removed by a person: both are made again

        def plan() -> Epoch:
            before = self._border(number, block - 1) if block else Border()
            after = []

            def planned(spread: Spread) -> Epoch:
                made, border = plan_block(self.clips, self.seed, number, self.policy, block, before, spread)
                after.append(border)
                return made

            made = make(planned)
            _save(after[-1], self.border_path(number, block))  # first: where there is a plan, there is its border
            return made

        return ensure_epoch(path, plan, self.expected(number, block))

    def _after(self, number: int, block: int) -> Border:
        """The border after a block, which is planned first where that is not known."""
        if not self.border_path(number, block).exists():
            self.ensure(number, block)
        return self._border(number, block)

    def _border(self, number: int, block: int) -> Border:
        return _load(self.border_path(number, block))

    def remove_before(self, number: int, block: int = 0) -> None:
        super().remove_before(number, block)
        for border in self.folder.glob("epoch-*.json"):
            if border.name < self.path(max(number - 1, 0)).name:
                border.unlink(missing_ok=True)


def kept_in(folder: Path, clips: Clips | Catalogue, seed: int, policy: Policy) -> Kept:
    """In blocks for a catalogue."""
    if isinstance(clips, Catalogue):
        return Blocks(folder, clips, seed, policy)
    return Epochs(folder, clips, seed, policy)


def _save(border: Border, path: Path) -> None:
    """Draws that were left are some thousands, of a step or so: 25 bytes each in the file."""
    content: dict[str, object] = {"steps": border.steps, "draws": border.draws}
    for name, dtype in KEPT.items():
        values = np.ascontiguousarray(getattr(border, name), np.dtype(dtype).newbyteorder("<"))
        content[name] = base64.b64encode(values.tobytes()).decode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(with_digest(content), indent=1))
    except OSError as error:
        raise PlanError(
            f"The plan cannot be saved as {path}: {error.strerror or error}. Free some space, or choose another folder "
            "for the run."
        ) from error


def _load(path: Path) -> Border:
    try:
        content = json.loads(path.read_text())
        require_digest(content)
        arrays: dict[str, np.ndarray] = {
            name: np.frombuffer(base64.b64decode(content[name]), np.dtype(dtype).newbyteorder("<")).astype(dtype)
            for name, dtype in KEPT.items()
        }
        if len({len(array) for array in arrays.values()}) > 1:
            raise ValueError("its columns differ in length")
        return Border(content["steps"], content["draws"], **arrays)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(
            f"The saved border of blocks {path} cannot be read: {error}. Remove it and the folder {path.stem} beside "
            "it; the block is then planned again."
        ) from error
