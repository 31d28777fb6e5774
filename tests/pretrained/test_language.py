"""MiniLM: its sentence embeddings, and that padding has no influence on them."""

import pytest
import torch

from imtok.config import ConfigError
from imtok.pretrained.language import load_minilm


def test_related_sentences_have_similar_embeddings(needs) -> None:
    texts = [
        "a dog runs over the grass",
        "a puppy is running on a lawn",
        "the stock market fell on Tuesday",
    ]
    with torch.no_grad():
        vectors = needs("text_encoder/minilm").embed_text(texts)
    cosines = vectors @ vectors.T
    assert vectors.shape == (3, 384)
    assert torch.allclose(cosines.diagonal(), torch.ones(3), atol=1e-5)
    assert cosines[0, 1] > 0.6
    assert cosines[0, 2] < 0.15


def test_padding_has_no_influence(needs) -> None:
    encoder, short = needs("text_encoder/minilm"), "a red sign"
    with torch.no_grad():
        alone, mask = encoder.encode([short])
        batched, masks = encoder.encode([short, "a much longer sentence about a sign that is red " * 3])
        assert torch.allclose(encoder.embed_text([short]), encoder.embed_text([short, "w " * 90])[:1], atol=1e-5)
    assert mask.tolist() == [[True] * 5]  # three words between the two special tokens
    assert masks[0].sum() == 5
    assert torch.allclose(alone[0], batched[0, :5], atol=1e-5)


def test_embeddings_match_sentence_transformers(needs, sentences, reference) -> None:
    with torch.no_grad():
        vectors = needs("text_encoder/minilm").embed_text(sentences)
    torch.testing.assert_close(vectors[:, ::4], reference("minilm", "embedding"), atol=1e-5, rtol=0)


def test_encodes_empty_unicode_and_overlong_texts(needs) -> None:
    encoder = needs("text_encoder/minilm")
    with torch.no_grad():
        states, mask = encoder.encode(["", "日本語, ünïcode 🙂", "word " * 10_000])
    assert mask.sum(1).tolist()[0] == 2
    assert states.shape[1] == 128  # longer texts are truncated
    assert states.isfinite().all()


def test_rejects_another_networks_weights(needs, tmp_path) -> None:
    from safetensors.torch import save_file

    save_file({"embeddings.word_embeddings.weight": torch.zeros(3, 4)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="not the weights of BertModel"):
        load_minilm(tmp_path / "other.safetensors", tmp_path / "tokenizer.json")
