"""A peer's process: prepare, say so, then run a round for every line on standard input. Started by bench/peers.py.

Needs nothing of ours: it may run in an environment that does not have our requirements.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PASSES = 5  # over all members, a round
RATE = 16_000


def members(tars: Path) -> list[bytes]:
    """The audio of every clip in the tars of a folder."""
    found = []
    for path in sorted(tars.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".flac"):
                    content = tar.extractfile(member)
                    assert content is not None
                    found.append(content.read())
    return found


def kaldi_native_fbank(data: Path) -> Callable[[], int]:
    """Log-mel of int16 clips [n, samples], a clip at a time; returns clips."""
    import kaldi_native_fbank as knf

    clips = np.load(data)
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = "hanning"
    options.frame_opts.samp_freq = RATE
    options.mel_opts.num_bins = 128
    options.htk_compat = True
    options.use_energy = False

    def run() -> int:
        for clip in clips:
            waveform = clip.astype(np.float32) / 32768
            waveform -= waveform.mean()
            bank = knf.OnlineFbank(options)
            bank.accept_waveform(RATE, waveform)
            bank.input_finished()
            np.stack([bank.get_frame(frame) for frame in range(bank.num_frames_ready)])
        return len(clips)

    return run


def lhotse(data: Path) -> Callable[[], int]:
    """The same by lhotse's torch layer."""
    import torch
    from lhotse.features.kaldi.layers import Wav2LogFilterBank

    torch.set_num_threads(1)
    clips = np.load(data)
    layer = Wav2LogFilterBank(window_type="hanning", snip_edges=True, high_freq=0.0, num_filters=128)

    def run() -> int:
        with torch.no_grad():
            for clip in clips:
                waveform = torch.from_numpy(clip).float() / 32768
                layer((waveform - waveform.mean())[None])
        return len(clips)

    return run


def pyav(data: Path) -> Callable[[], int]:
    """Decode FLAC payloads; returns clips."""
    import av

    payloads = members(data)

    def run() -> int:
        for payload in payloads:
            with av.open(io.BytesIO(payload)) as container:
                container.streams.audio[0].thread_type = "NONE"
                np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
        return len(payloads)

    return run


def torchcodec(data: Path) -> Callable[[], int]:
    """Decode FLAC payloads; returns clips."""
    import torch
    from torchcodec.decoders import AudioDecoder

    torch.set_num_threads(1)
    payloads = members(data)

    def run() -> int:
        for payload in payloads:
            AudioDecoder(payload).get_all_samples()
        return len(payloads)

    return run


def litdata(data: Path) -> Callable[[], int]:
    """Read every member in its own shuffled order from its own chunks; returns bytes."""
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    place = data / "litdata"
    if not (place / "index.json").exists():
        writer = BinaryWriter(str(place), chunk_bytes=64 << 20)
        for number, payload in enumerate(members(data)):
            writer.add_item(number, payload)
        writer.done()
        writer.merge()

    def run() -> int:
        return sum(len(payload) for _ in range(PASSES) for payload in StreamingDataset(str(place), shuffle=True))

    return run


def mosaic(data: Path) -> Callable[[], int]:
    """The same by mosaicml-streaming."""
    from streaming import MDSWriter, StreamingDataset

    place = data / "mosaic"
    if not (place / "index.json").exists():
        with MDSWriter(out=str(place), columns={"flac": "bytes"}) as writer:
            for payload in members(data):
                writer.write({"flac": payload})
    dataset = StreamingDataset(local=str(place), shuffle=True, batch_size=1)

    def run() -> int:
        return sum(len(sample["flac"]) for _ in range(PASSES) for sample in dataset)

    return run


def energon(data: Path) -> Callable[[], int]:
    """The same by Megatron-Energon, from the tars themselves."""
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        WorkerConfig,
        basic_sample_keys,
        get_savable_loader,
        get_train_dataset,
        stateless,
    )
    from megatron.energon.epathlib import EPath
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    meta = data / ".nv-meta"
    if not (meta / "dataset.yaml").exists():
        tars = sorted(path.name for path in data.glob("*.tar"))
        WebdatasetPreparator.prepare_dataset(
            EPath(data), tars, split_parts_ratio=[("train", 1.0)], tar_index_only=False, workers=1
        )
        (meta / "dataset.yaml").write_text("__module__: megatron.energon\n__class__: CrudeWebdataset\n")

    @stateless
    def cook(sample: dict) -> dict:
        return {**basic_sample_keys(sample), "flac": sample["flac"]}

    class Encoder(DefaultTaskEncoder):
        cookers = [Cooker(cook)]  # noqa: RUF012
        decoder = None  # bytes as they are, as everybody else gives them

        def batch(self, samples: list) -> list:
            return samples

    clips = len(members(data))
    dataset = get_train_dataset(
        str(data), worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0), batch_size=1,
        shuffle_buffer_size=1000, max_samples_per_sequence=None, task_encoder=Encoder(), repeat=True,
    )  # fmt: skip
    samples = iter(get_savable_loader(dataset))

    def run() -> int:
        return sum(len(next(samples)[0]["flac"]) for _ in range(PASSES * clips))

    return run


def main() -> None:
    """peer.py WORK DATA"""
    sys.path.pop(0)  # bench/streaming.py is not mosaicml-streaming
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not an answer
    run = globals()[sys.argv[1]](Path(sys.argv[2]))
    run()
    print("{}", file=answers, flush=True)
    for _ in sys.stdin:
        since = time.process_time()
        units = run()
        print(json.dumps({"units": units, "seconds": time.process_time() - since}), file=answers, flush=True)


if __name__ == "__main__":
    main()
