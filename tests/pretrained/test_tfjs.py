import json
from pathlib import Path

import numpy as np
import pytest

from imtok.pretrained.tfjs import read_weights


def test_weights_are_dequantized_in_the_order_of_the_manifest(tmp_path: Path) -> None:
    entries = [
        {"name": "a", "shape": [2, 2], "dtype": "float32", "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1}},
        {"name": "b", "shape": [3], "dtype": "float32"},
    ]
    (tmp_path / "manifest.json").write_text(json.dumps([{"paths": ["weights.bin"], "weights": entries}]))
    binary = tmp_path / "weights.bin"
    binary.write_bytes(bytes([0, 1, 2, 255]) + np.array([1.5, -2, 3], "<f4").tobytes())
    weights = read_weights(tmp_path / "manifest.json", binary)
    assert list(weights) == ["a", "b"]
    np.testing.assert_array_equal(weights["a"], [[-1, -0.5], [0, 126.5]])
    np.testing.assert_array_equal(weights["b"], [1.5, -2, 3])
    binary.write_bytes(binary.read_bytes() + b"more")
    with pytest.raises(ValueError, match=r"20 bytes, manifest\.json describes 16"):
        read_weights(tmp_path / "manifest.json", binary)
