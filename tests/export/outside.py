"""Run by itself, where Gamut is not on the path: opens exported folders as anybody would.

    python -I outside.py FOLDER      # FOLDER/jobs.json: [{"kind", "name", "inputs", "expected"}]

A job's folder is FOLDER/NAME; inputs and expected outputs are arrays of FOLDER/arrays.npz. Prints JSON: what was apart
by how much, relative to the largest number.
"""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np

try:
    import gamut
except ModuleNotFoundError:
    pass
else:
    sys.exit(f"gamut is on the path: {gamut.__file__}")

ROOT = Path(sys.argv[1])
ARRAYS = np.load(ROOT / "arrays.npz")


def apart(found, expected):
    found = np.asarray(found)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(abs(found - expected).max() / abs(expected).max())


def ast(folder, waveform):
    from transformers import ASTForAudioClassification, AutoFeatureExtractor, pipeline

    extractor = AutoFeatureExtractor.from_pretrained(folder)
    assert type(extractor).__name__ == "ASTFeatureExtractor"
    model, told = ASTForAudioClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    about = {name: getattr(model.config, name, None) for name in ("id2label", "problem_type", "thresholds")}
    logits = model.eval()(**extractor(waveform, sampling_rate=16000, return_tensors="pt")).logits[0].detach()
    multi = about["problem_type"] == "multi_label_classification"
    chances = (logits.sigmoid() if multi else logits.softmax(-1)).numpy()
    found = pipeline("audio-classification", model=str(folder))({"raw": waveform, "sampling_rate": 16000}, top_k=4)
    order = [model.config.label2id[one["label"]] for one in found]
    assert order == (-chances).argsort(kind="stable").tolist()
    assert np.abs([one["score"] for one in found] - chances[order]).max() <= 1e-5
    return [logits.numpy()], about


def vit(folder, mel):
    import torch
    from transformers import ViTModel

    model, told = ViTModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert not any(told.values()), told
    tokens = model.eval()(torch.from_numpy(mel)[None, None]).last_hidden_state[0].detach()
    return [tokens.numpy()], {}


def timm(folder, mel):
    import timm
    import torch

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    image = torch.from_numpy(mel)[None, None]
    with torch.no_grad():
        found = [model.forward_features(image)[0].numpy(), model(image)[0].numpy()]
    config = json.loads((folder / "config.json").read_text())
    bare = timm.create_model(config["architecture"], pretrained=False, **config["model_args"]).eval()
    timm.models.load_checkpoint(bare, str(folder / "model.safetensors"))
    with torch.no_grad():
        assert (bare(image)[0].numpy() == found[1]).all()
    return found, {}


def onnx(folder, *waveforms):
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    names = [one.name for one in session.get_outputs()]
    return [out for waveform in waveforms for out in session.run(None, {"waveform": waveform})], names


def torch_(folder, *waveforms):
    import torch

    program = torch.export.load(folder / "model.pt2").module()
    return [out.detach().numpy() for waveform in waveforms for out in program(torch.from_numpy(waveform))], {}


KINDS = {"ast": ast, "vit": vit, "timm": timm, "onnx": onnx, "torch": torch_}


def main():
    os.chdir(ROOT)
    results = []
    for job in json.loads((ROOT / "jobs.json").read_text()):
        found, about = KINDS[job["kind"]](ROOT / job["name"], *(ARRAYS[one] for one in job["inputs"]))
        errors = [apart(out, ARRAYS[one]) for out, one in zip(found, job["expected"], strict=True)]
        (block,) = re.findall(r"```python\n(.*?)```", (ROOT / job["name"] / "README.md").read_text(), re.DOTALL)
        said = []
        exec(block, {"print": lambda *words, said=said: said.append(words)})
        results.append({"name": job["name"], "apart": errors, "about": about, "said": len(said)})
    print(json.dumps(results))


main()
