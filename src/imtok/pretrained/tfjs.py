"""Read the weights of a TensorFlow.js model: a manifest in JSON and one binary file of quantized values."""

import json
import math
from pathlib import Path

import numpy as np


def read_weights(manifest: Path, binary: Path) -> dict[str, np.ndarray]:
    """All weights by name in the manifest's order, dequantized to float32.

    Raises:
        ValueError: the manifest does not describe the binary file to its last byte.
    """
    data, start = binary.read_bytes(), 0
    weights = {}
    for group in json.loads(manifest.read_text(encoding="utf-8")):
        for entry in group["weights"]:
            quantization = entry.get("quantization", {"dtype": "float32", "scale": 1.0, "min": 0.0})
            stored = np.dtype(quantization["dtype"]).newbyteorder("<")
            count = math.prod(entry["shape"])
            values = np.frombuffer(data, stored, count, start).reshape(entry["shape"])
            weights[entry["name"]] = (values * quantization["scale"] + quantization["min"]).astype(np.float32)
            start += count * stored.itemsize
    if start != len(data):
        raise ValueError(f"{binary}: {len(data)} bytes, {manifest.name} describes {start}")
    return weights
