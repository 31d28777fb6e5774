from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from imtok.pretrained.onnx import assign_layers, read_layers

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class Twin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 5, 1)
        self.linear = nn.Linear(5, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.norm(self.linear(self.second(x).mean((2, 3))))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A network as Paddle exports it: biases as Add, a batch norm, identities, a decomposed layer norm."""
    random = np.random.default_rng(0)
    values = {
        "w1": (4, 3, 3, 3), "b1": (1, 4, 1, 1),
        "w2": (5, 4, 1, 1), "scale": (5,), "shift": (5,), "mean": (5,), "variance": (5,),
        "w3": (5, 6), "b3": (6,), "gain": (6,), "offset": (6,),
    }  # fmt: skip
    constants = {name: random.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in values.items()}
    constants |= {"epsilon": np.float32(1e-5).reshape(()), "two": np.float32(2).reshape(())}
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "w1"], ["a"]),
        node("Identity", ["a"], ["b"]),
        node("Add", ["b", "b1"], ["c"]),
        node("Relu", ["c"], ["d"]),
        node("Conv", ["d", "w2"], ["e"]),
        node("BatchNormalization", ["e", "scale", "shift", "mean", "variance"], ["f"], epsilon=1e-3),
        node("ReduceMean", ["f"], ["g"], axes=[2, 3], keepdims=0),
        node("MatMul", ["g", "w3"], ["h"]),
        node("Add", ["h", "b3"], ["i"]),
        node("ReduceMean", ["i"], ["j"], axes=[-1]),
        node("Sub", ["i", "j"], ["k"]),
        node("Pow", ["k", "two"], ["l"]),
        node("ReduceMean", ["l"], ["m"], axes=[-1]),
        node("Add", ["m", "epsilon"], ["n"]),
        node("Sqrt", ["n"], ["o"]),
        node("Div", ["k", "o"], ["p"]),
        node("Mul", ["p", "gain"], ["q"]),
        node("Add", ["q", "offset"], ["y"]),
    ]
    info = onnx.helper.make_tensor_value_info
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "network",
            [info("x", onnx.TensorProto.FLOAT, ["n", 3, 8, 8])],
            [info("y", onnx.TensorProto.FLOAT, ["n", 6])],
            [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 11)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "network.onnx")
    return tmp_path / "network.onnx"


def test_layers_read_from_a_graph_match_onnxruntime(graph: Path) -> None:
    twin = Twin()
    assign_layers(twin, read_layers(graph))
    pictures = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(graph).run(None, {"x": pictures})
    with torch.no_grad():
        np.testing.assert_allclose(twin(torch.tensor(pictures)).numpy(), expected, atol=1e-5)


def test_rejects_a_network_with_other_shapes(graph: Path) -> None:
    with pytest.raises(ValueError, match=r"Conv2d.*the file's weight is \(4, 3, 3, 3\)"):
        assign_layers(nn.Sequential(nn.Conv2d(3, 8, 3)), read_layers(graph))
    with pytest.raises(ValueError, match="has 9 layers, the file only 4"):
        assign_layers(nn.Sequential(*(nn.Linear(1, 1) for _ in range(9))), read_layers(graph))
