"""A tiny CLIP with random weights, saved and loaded through the registry."""

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from imtok import pretrained
from imtok.config import ConfigError


def test_similarity_is_the_cosine_of_both_towers_embeddings(tiny_clip: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    network = pretrained.load("clip/transformers", file=tiny_clip)
    assert network.name == "clip/transformers"
    assert len(network.sha256) == 64
    pictures = [np.ascontiguousarray(data.astronaut()[:64, :80]), np.ascontiguousarray(data.coffee()[:48, :48])]
    texts = ["a red sign", "the blue sea and a dog"]
    with torch.no_grad():
        found = network.similarity(pictures, texts)
        model, processor = CLIPModel.from_pretrained(tiny_clip).eval(), CLIPProcessor.from_pretrained(tiny_clip)
        for index, (picture, text) in enumerate(zip(pictures, texts, strict=True)):  # one by one, without padding
            image_embedding = model.get_image_features(**processor(images=picture, return_tensors="pt")).pooler_output
            text_embedding = model.get_text_features(**processor.tokenizer(text, return_tensors="pt")).pooler_output
            expected = (image_embedding @ text_embedding.T / image_embedding.norm() / text_embedding.norm()).item()
            assert found[index].item() == pytest.approx(expected, abs=1e-5)


def test_thin_crops_of_one_colour_embed_like_the_whole(tiny_clip: Path) -> None:
    network = pretrained.load("clip/transformers", file=tiny_clip)
    red = np.zeros((40, 40, 3), np.uint8) + np.array([220, 30, 30], np.uint8)
    with torch.no_grad():
        (whole, *thin), _ = network.embed([red, *(red[:height] for height in (1, 2, 3, 4))], ["red"])
    assert all(torch.allclose(embedding, whole, atol=1e-5) for embedding in thin)


def test_long_texts_are_truncated_and_detected(tiny_clip: Path) -> None:
    network = pretrained.load("clip/transformers", file=tiny_clip)
    picture = np.ascontiguousarray(data.coffee()[:48, :48])
    assert not network.is_cut("a red sign")
    assert network.is_cut("a red sign " * 20)
    with torch.no_grad():
        assert torch.isfinite(network.similarity([picture], ["a red sign " * 20])).all()


def test_rejects_another_folder_with_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="no CLIP with its tokenizer and processor") as caught:
        pretrained.load("clip/transformers", file=tmp_path)
    assert "\n" not in str(caught.value)
