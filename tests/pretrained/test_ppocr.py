import numpy as np
import pytest
import torch

from imtok.pretrained.entries import REGISTRY

EDGES = [  # of the graph, corresponding to our five maps
    "p2o.pd_op.relu.4.0",
    "p2o.pd_op.add.18.0",
    "p2o.pd_op.add.51.0",
    "p2o.pd_op.add.64.0",
    "p2o.pd_op.add.78.0",
]


@pytest.fixture
def network(needs):
    return needs("text_features/ppocrv6")


@pytest.mark.parametrize("size", [(48, 160), (48, 96)])
def test_maps_match_onnxruntime(network, pattern, size) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from imtok.pretrained.packages import find_file

    source = REGISTRY[network.name]
    assert source.package is not None
    model = onnx.load(find_file(source.package, source.files[0]))
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(edge) for edge in EDGES)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = pattern(*size)
    expected = session.run(EDGES, {"x": images.flip(1).numpy()})  # its input is BGR
    maps = network(images)
    assert len(maps) == 5
    for ours, theirs in zip(maps, expected, strict=True):
        np.testing.assert_allclose(ours.reshape(theirs.shape).numpy(), theirs, atol=1e-3)
    assert [tuple(one.shape[1:]) for one in maps] == [
        (96, 12, size[1] // 4),
        (96, 12, size[1] // 4),
        (192, 6, size[1] // 4),
        (384, 3, size[1] // 4),
        (120, 1, size[1] // 8),
    ]


def test_gradients_of_every_map_match_finite_differences(network, pattern, check_gradient) -> None:
    check_gradient(network, lambda network, images: network(images), pattern(48, 64, 1))


def test_last_map_changes_more_with_letters_than_with_contrast(network, draw_word) -> None:
    def crop(text: str, gain: float = 1.0) -> torch.Tensor:
        picture = torch.tensor(draw_word(text, 48)).permute(2, 0, 1)[None].float() / 127.5 - 1
        return torch.nn.functional.interpolate(gain * picture, (48, 160))

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((network(a)[-1] - network(b)[-1]).square().mean())

    assert distance(crop("HOUSE"), crop("MOUSE")) > 3 * distance(crop("HOUSE"), crop("HOUSE", gain=0.9))
