import numpy as np
import pytest
import torch

from imtok.pretrained.entries import REGISTRY

EDGES = [  # of the graph, where our five maps lie
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
def test_maps_are_those_of_onnxruntime(network, pattern, size) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from imtok.pretrained.packages import find_file

    source = REGISTRY[network.name]
    assert source.package is not None
    model = onnx.load(find_file(source.package, source.files[0]))
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(edge) for edge in EDGES)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = pattern(*size)
    wanted = session.run(EDGES, {"x": images.flip(1).numpy()})  # it wants BGR
    maps = network(images)
    assert len(maps) == 5
    for ours, theirs in zip(maps, wanted, strict=True):
        np.testing.assert_allclose(ours.reshape(theirs.shape).numpy(), theirs, atol=1e-3)
    assert [tuple(one.shape[1:]) for one in maps] == [
        (96, 12, size[1] // 4),
        (96, 12, size[1] // 4),
        (192, 6, size[1] // 4),
        (384, 3, size[1] // 4),
        (120, 1, size[1] // 8),
    ]


def test_gradients_reach_the_picture_from_every_map(network, pattern, check_gradient) -> None:
    check_gradient(network, lambda network, images: network(images), pattern(48, 64, 1))


def test_a_clear_word_moves_the_maps_more_when_its_letters_change_than_its_shade(network, draw_word) -> None:
    def crop(text: str, gain: float = 1.0) -> torch.Tensor:
        picture = torch.tensor(draw_word(text, 48)).permute(2, 0, 1)[None].float() / 127.5 - 1
        return torch.nn.functional.interpolate(gain * picture, (48, 160))

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((network(a)[-1] - network(b)[-1]).square().mean())

    assert distance(crop("HOUSE"), crop("MOUSE")) > 3 * distance(crop("HOUSE"), crop("HOUSE", gain=0.9))
