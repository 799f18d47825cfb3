"""How an engine's files of a checkpoint reach the disk and come back: hashed and durable, verified and restricted.

DeepSpeed's own are pickles of tensors and a short list of its classes. Of the other engines Adam's moments lie in
engine/moments-00000.safetensors of each rank, by the names of their parameters: the same files whoever held which part.
For the parameters (or the parts of parameters) that a rank owned a file has `NAME/exp_avg` and `NAME/exp_avg_sq`, flat,
and `NAME/step`. A parameter's parts make it up in the order of the ranks.
"""

from __future__ import annotations

import copyreg
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gamut.train.unused  # noqa: F401  # before DeepSpeed

# isort: split
import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensor_bytes

from gamut import files
from gamut.errors import CheckpointError
from gamut.track.checkpoints import read_verified
from gamut.unpickle import unpickle

FOLDER = "engine"  # of a checkpoint: where an engine's own files lie
ALLOWED = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]  # in pickles, besides tensors
KINDS = ("exp_avg", "exp_avg_sq")
REMEDY = (
    "The earlier checkpoints are untouched. Free some space or fix the folder's permissions, and start the run again: "
    "it goes on from the newest of them."
)

# By its value: some versions of Python (Debian 12's 3.11.2) pickle an enum as a call of getattr, and no careful reader
# allows that.
copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))


class Writer(CheckpointEngine):
    """Takes a checkpoint's files in memory, to `write` them under `root` while the training goes on.

    `write` notes their hashes in `entries` (by path relative to `root`), and lets go of each when it is durable.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.name = "gamut"
        self.root = root
        self.entries: dict[str, dict[str, Any]] = {}
        self.size = 0  # bytes that were taken
        self.moved = 0  # files begun and ended: it grows while something is written
        self._files: list[tuple[Path, Callable[[files.Hashed], object]]] = []

    def create(self, info: CheckpointCommitInfo) -> None:
        pass

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True

    def save(self, state_dict: Any, path: str) -> None:
        """Called by DeepSpeed: torch.save, now, since its tensors are those that are trained."""
        memory = io.BytesIO()
        torch.save(state_dict, memory)
        self.size += memory.tell()
        self._files.append((Path(path), lambda file: file.write(memory.getbuffer())))

    def bytes(self, name: str, data: bytes) -> None:
        """A file of our own."""
        self.size += len(data)
        self._files.append((self.root / name, lambda file: file.write(data)))

    def tensors(self, name: str, tensors: dict[str, torch.Tensor], about: dict[str, str]) -> None:
        """A safetensors file of copies, which nobody changes any more."""
        self.size += sum(tensor.nbytes for tensor in tensors.values())
        self._files.append((self.root / name, lambda file: file.write(tensor_bytes(tensors, about))))

    def write(self) -> None:
        """Write what was taken, hashed and durable. Raises CheckpointError, a sentence, where that fails."""
        files.appears(self.root)
        while self._files:
            self._write(*self._files.pop(0))

    def _write(self, path: Path, fill: Any) -> None:
        written: list[files.Hashed] = []

        def counted(file: files.Hashed) -> None:
            written.append(file)
            fill(file)

        self.moved += 1
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            self.entries[str(path.relative_to(self.root))] = files.write_hashed(path, counted)
            self.moved += 1
        except OSError as error:
            raise CheckpointError(explain(error, path, written[0].size if written else 0)) from error

    def load(self, path: str, map_location: Any = None) -> Any:
        raise NotImplementedError("a Writer only writes")


class Reader(CheckpointEngine):
    """Reads DeepSpeed's files of a verified checkpoint: each is checked again, in memory, before it is unpickled."""

    def __init__(self, root: Path, entries: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        self.name = "gamut"
        self.root = root
        self.entries = entries

    def create(self, info: CheckpointCommitInfo) -> None:
        pass

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True

    def save(self, state_dict: Any, path: str) -> None:
        raise NotImplementedError("a Reader only reads")

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """A safetensors file of the checkpoint, by its path below the root."""
        if name not in self.entries:
            raise CheckpointError(f"The manifest of {self.root} has no file {name}: it was written by another setup.")
        return load_tensors(read_verified(self.root / name, self.entries[name]))

    def load(self, path: str, map_location: Any = None) -> Any:
        name = str(Path(path).relative_to(self.root))
        if name not in self.entries:
            raise CheckpointError(f"The manifest of {self.root} has no file {name}: it was written by another setup.")
        return unpickle(read_verified(Path(path), self.entries[name]), path, ALLOWED, map_location)


def explain(error: OSError, path: Path, wanted: int = 0) -> str:
    """A sentence about a failed write of a checkpoint. path, wanted: its folder and bytes, where no file is named."""
    return f"{files.refusal(error, path, wanted)} {REMEDY}"


def write_moments(writer: Writer, rank: int, states: dict[str, dict[str, torch.Tensor]]) -> None:
    """Write this rank's {parameter: {step [], exp_avg, exp_avg_sq, both of any shape}}, without padding."""
    tensors = {}
    for name, state in states.items():
        tensors[f"{name}/step"] = torch.tensor([float(state["step"])])
        for kind in KINDS:
            tensors[f"{name}/{kind}"] = state[kind].detach().reshape(-1).to("cpu", copy=True)
    # With metadata, since safetensors writes a broken header for an empty dictionary (a rank that owns nothing).
    writer.tensors(f"{FOLDER}/moments-{rank:05d}.safetensors", tensors, {"rank": str(rank)})


class Moments:
    """What all ranks of a checkpoint wrote."""

    def __init__(self, ranks: list[dict[str, torch.Tensor]], origin: str) -> None:
        self.ranks = ranks
        self.origin = origin

    def of(self, name: str, numel: int) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """(step, float32 [], {exp_avg: [numel], exp_avg_sq: [numel]}) of a parameter; (None, {}) before any update.

        Raises CheckpointError where its parts do not make it up.
        """
        parts = [rank for rank in self.ranks if f"{name}/step" in rank]
        if not parts:
            return None, {}
        flat: dict[str, Any] = {kind: torch.cat([part[f"{name}/{kind}"] for part in parts]) for kind in KINDS}
        if any(len(value) != numel for value in flat.values()):
            raise CheckpointError(
                f"{self.origin} has {len(flat[KINDS[0]])} numbers of the optimiser's state of {name}, which has "
                f"{numel}: it was written by another model. Take another checkpoint."
            )
        return parts[0][f"{name}/step"][0].clone(), flat


def read_moments(reader: Reader) -> Moments:
    """All ranks' files of a verified checkpoint."""
    names = sorted(name for name in reader.entries if name.startswith(f"{FOLDER}/moments-"))
    return Moments([reader.tensors(name) for name in names], str(reader.root))
