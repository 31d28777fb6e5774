"""Reading of TensorFlow.js weights: a JSON manifest and one binary file of quantized values."""

import json
import math
from pathlib import Path

import numpy as np


def read_weights(manifest: Path, binary: Path) -> dict[str, np.ndarray]:
    """Read all weights, dequantized to float32, by name in the manifest's order.

    Raises:
        ValueError: the size of the binary file does not match the manifest.
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
