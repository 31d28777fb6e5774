import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from imtok import pretrained
from imtok.config import ConfigError
from imtok.data.sample import Face
from imtok.evaluation.faces import FaceJudge, embed_faces
from imtok.pretrained.arcface import ArcFace, load_arcface


def test_insightface_state_dict_gives_insightfaces_embeddings(
    tmp_path: Path, synthetic_state, pattern, reference
) -> None:
    """`references/make.py arcface` made the reference, with the same synthetic weights."""
    torch.save(synthetic_state(ArcFace()), tmp_path / "backbone.pth")
    network = load_arcface(tmp_path / "backbone.pth").freeze()
    expected = reference("arcface", "embedding")
    with torch.no_grad():
        ours = network.embed(pattern(112, 112))
        shapes = [tuple(one.shape[1:]) for one in network(pattern(112, 112, 1))]
    torch.testing.assert_close(ours, expected, atol=float(1e-4 * expected.abs().max()), rtol=0)
    assert shapes == [(64, 112, 112), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]


def test_judge_is_iresnet_100_and_gets_aligned_rgb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks are tested above. A face whose landmarks already lie on the template is not warped."""
    source = pretrained.REGISTRY["face_judge/arcface_r100"]
    with torch.device("meta"):
        deep = ArcFace(source.load.keywords["depths"])  # pyright: ignore[reportFunctionMemberAccess]
    assert [len(getattr(deep, f"layer{stage}")) for stage in (1, 2, 3, 4)] == [3, 13, 30, 3]
    assert sum(p.numel() for p in deep.parameters()) == pytest.approx(65.2e6, rel=0.01)
    torch.manual_seed(0)
    torch.save(ArcFace((1, 1, 1, 1)).state_dict(), tmp_path / "backbone.pth")
    shallow = dataclasses.replace(source, load=partial(load_arcface, depths=(1, 1, 1, 1)))
    monkeypatch.setitem(pretrained.REGISTRY, "face_judge/arcface_r100", shallow)
    judge = pretrained.load("face_judge/arcface_r100", file=tmp_path / "backbone.pth")
    assert isinstance(judge, FaceJudge)
    picture = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    found = embed_faces(judge, picture, [Face(box=(20.0, 20.0, 90.0, 110.0), landmarks=pretrained.ARCFACE_TEMPLATE)])
    rgb = (torch.tensor(picture).permute(2, 0, 1)[None].float() - 127.5) / 127.5  # TokBench's normalization
    with torch.no_grad():
        torch.testing.assert_close(found, judge.embed(rgb), rtol=1e-3, atol=1e-3)


def test_tokbenchs_judge_loads_from_its_published_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in network with the same inputs and outputs: the mean colour times a matrix."""
    onnx = pytest.importorskip("onnx")
    matrix = np.random.default_rng(0).normal(size=(3, 512)).astype(np.float32)

    def write(side: int) -> Path:
        info, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
        graph = onnx.helper.make_graph(
            [
                node("GlobalAveragePool", ["input.1"], ["mean"]),
                node("Flatten", ["mean"], ["flat"]),
                node("MatMul", ["flat", "matrix"], ["683"]),
            ],
            "recognizer",
            [info("input.1", onnx.TensorProto.FLOAT, [None, 3, side, side])],
            [info("683", onnx.TensorProto.FLOAT, [None, 512])],
            [onnx.numpy_helper.from_array(matrix, "matrix")],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, tmp_path / f"{side}.onnx")
        return tmp_path / f"{side}.onnx"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(pretrained.MissingWeights, match=r"own/face_judge-antelopev2\.onnx; it is glintr100\.onnx"):
        pretrained.load("face_judge/antelopev2")
    judge = pretrained.load("face_judge/antelopev2", file=write(112))
    assert isinstance(judge, FaceJudge)
    assert len(judge.sha256) == 64
    picture = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    face = Face(box=(20.0, 20.0, 90.0, 110.0), landmarks=pretrained.ARCFACE_TEMPLATE)
    found = embed_faces(judge, picture, [face, face])
    expected = ((picture.astype(np.float32) - 127.5) / 127.5).mean((0, 1)) @ matrix
    np.testing.assert_allclose(found, np.stack([expected] * 2), rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match=r"to vectors$"):
        pretrained.load("face_judge/antelopev2", file=write(64))
    (tmp_path / "no.onnx").write_text("no")
    with pytest.raises(ConfigError, match="not a readable ONNX file"):
        pretrained.load("face_judge/antelopev2", file=tmp_path / "no.onnx")


def test_gradients_of_every_map_match_finite_differences(synthetic_state, pattern, check_gradient) -> None:
    network = ArcFace((2, 1, 1, 1))  # one block of each kind, and three more
    network.load_state_dict(synthetic_state(network))
    network.freeze()
    check_gradient(network, lambda net, images: net(images), pattern(112, 112, 1))
