"""Text conditioning: stored features, states computed by the encoder, classes, and no text."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from imtok import pretrained
from imtok.config import ConfigError
from imtok.data.shards import ShardWriter
from imtok.data.synthetic import SyntheticPictures
from imtok.data.text_features import distinct_captions, embed
from imtok.data.vocabulary import LABELS as VOCABULARY
from imtok.pretrained.language import load_t5
from imtok.tokenizers.text import LABELS, TextConditioner, TextConfig

MINILM = TextConfig(encoder="text_encoder/minilm", dim=384, max_tokens=16)


@pytest.fixture
def shards(tmp_path: Path) -> str:
    with ShardWriter(str(tmp_path / "signs")) as writer:
        for sample in SyntheticPictures(3, size=48, word_height=(10.0, 20.0)):
            writer.write(sample)
    return str(tmp_path / "signs")


def test_stored_features_equal_encoder_outputs(shards: str, needs, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("text_encoder/minilm")
    captions = [*distinct_captions(shards), None]
    fresh, fresh_mask = TextConditioner(MINILM).encode(captions)
    embed(shards, "text_encoder/minilm", max_tokens=16)
    monkeypatch.setattr(pretrained, "load", lambda name: pytest.fail("everything is stored"))
    stored, mask = TextConditioner(MINILM, [shards]).encode(captions)
    assert torch.equal(mask, fresh_mask)
    assert not mask[-1].any()
    assert torch.allclose(stored, fresh * fresh_mask[:, :, None], atol=2e-3)


def test_captions_without_stored_features_are_encoded(shards: str, needs) -> None:
    needs("text_encoder/minilm")
    embed(shards, "text_encoder/minilm", max_tokens=16)
    known = next(iter(distinct_captions(shards)))
    both, mask = TextConditioner(MINILM, [shards]).encode([known, "a caption of its own"])
    alone, _ = TextConditioner(MINILM).encode(["a caption of its own"])
    assert torch.allclose(both[1][mask[1]], alone[0], atol=1e-5)


def test_rejects_other_widths_other_weights_and_non_text_encoders(shards: str, needs) -> None:
    needs("text_encoder/minilm")
    embed(shards, "text_encoder/minilm", max_tokens=16)
    # Features of another length are stored separately.
    TextConditioner(dataclasses.replace(MINILM, max_tokens=8), [shards])
    with pytest.raises(ConfigError, match="of 384 channels, the tokenizer wants 12"):
        TextConditioner(dataclasses.replace(MINILM, dim=12), [shards])
    with pytest.raises(ConfigError, match="has 384 channels, not 12"):
        TextConditioner(dataclasses.replace(MINILM, dim=12)).encode(["a dog"])
    with pytest.raises(ConfigError, match=r"these weights of text_encoder/minilm are not those that the model or its"):
        TextConditioner(dataclasses.replace(MINILM, sha256="of others")).encode(["not stored"])
    needs("perceptual/vgg16")
    with pytest.raises(ConfigError, match="perceptual/vgg16 reads no text"):
        TextConditioner(dataclasses.replace(MINILM, encoder="perceptual/vgg16")).encode(["a dog"])


def test_features_of_two_encoder_weights_are_stored_side_by_side(
    shards: str, needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model gets the features of the weights it was trained with, a new one those of the available weights."""
    encoder = needs("text_encoder/minilm")
    other = copy.deepcopy(encoder)
    next(other.model.parameters()).data *= 3
    other.sha256 = "of others"
    captions = [*distinct_captions(shards)]
    with torch.no_grad():
        states_by_hash = {one.sha256: one.encode(captions, 16)[0] for one in (encoder, other)}
    assert not torch.allclose(*states_by_hash.values(), atol=0.1)
    for one in (encoder, other):
        monkeypatch.setattr(pretrained, "load", lambda name, one=one: one)
        embed(shards, "text_encoder/minilm", max_tokens=16)
    monkeypatch.setattr(pretrained, "load", lambda name: pytest.fail("everything is stored"))
    for sha256, states in states_by_hash.items():
        stored, mask = TextConditioner(dataclasses.replace(MINILM, sha256=sha256), [shards]).encode(captions)
        assert torch.allclose(stored, states * mask[:, :, None], atol=2e-3)
    for one in (encoder, other):
        monkeypatch.setattr(pretrained, "load", lambda name, one=one: one)
        assert TextConditioner(MINILM, [shards]).config.sha256 == one.sha256


def test_truncated_captions_are_warned_about_once(needs, caplog: pytest.LogCaptureFixture) -> None:
    needs("text_encoder/minilm")
    text_conditioner = TextConditioner(MINILM)
    text_conditioner.encode(["a sign", None, "ünï 標識"])
    assert not caplog.records
    long = "dog " * 10_000
    states, _ = text_conditioner.encode(["a sign", long])
    text_conditioner.encode([long, "cat " * 10_000])
    assert states.shape[1] == 16
    assert [record.getMessage() for record in caplog.records] == [
        f"the caption {long[:40]!r}… has 10002 tokens, of which the model reads 16; it and others that are too long "
        "are cut"
    ]


def test_prepare_loads_needed_encoder_and_rejects_unknown_classes(
    shards: str, needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("text_encoder/minilm")
    loaded: list[str] = []
    original_load = pretrained.load
    monkeypatch.setattr(pretrained, "load", lambda name: loaded.append(name) or original_load(name))
    TextConditioner(MINILM, [shards]).prepare()
    assert loaded == ["text_encoder/minilm"]
    embed(shards, "text_encoder/minilm", max_tokens=16)
    loaded.clear()
    TextConditioner(MINILM, [shards]).prepare()
    TextConditioner(TextConfig(encoder=LABELS, dim=len(VOCABULARY), classes=VOCABULARY), [shards]).prepare()
    assert loaded == []
    with pytest.raises(ConfigError, match="is none of the tokenizer's 1 classes"):
        TextConditioner(TextConfig(encoder=LABELS, dim=1, classes=("cat",)), [shards]).prepare()


def test_captions_in_jsonl_beside_pictures_are_found(tmp_path: Path, needs, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("text_encoder/minilm")
    for index in range(2):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{index}.png")
    rows = [{"file": f"{index}.png", "caption": "a dog", "label": "animal"} for index in range(2)]
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert list(distinct_captions(tmp_path)) == ["a dog"]
    loaded: list[str] = []
    monkeypatch.setattr(pretrained, "load", lambda name, load=pretrained.load: loaded.append(name) or load(name))
    TextConditioner(MINILM, [tmp_path]).prepare()
    assert loaded == ["text_encoder/minilm"]


@pytest.mark.parametrize("length", [-1, 0, 2, 513])
def test_rejects_max_tokens_outside_the_encoder_range(length: int, shards: str, needs) -> None:
    encoder = needs("text_encoder/minilm")
    with pytest.raises(ConfigError, match=rf"minilm: reads at least 3 and at most 512 tokens of a text, not {length}"):
        embed(shards, "text_encoder/minilm", max_tokens=length)
    assert not (Path(shards) / "text_features").exists()
    assert encoder.encode(["a dog that ran"], 3)[1].sum() == 3
    assert encoder.encode(["dog " * 1000], 512)[0].shape == (1, 512, 384)


def test_autocast_does_not_change_text_states(needs) -> None:
    encoder = needs("text_encoder/minilm")
    with torch.no_grad():
        states, _ = encoder.encode(["a red sign"])
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(encoder.encode(["a red sign"])[0], states)


def test_bits_count_only_text_given_to_the_decoder() -> None:
    assert list(TextConditioner(MINILM).bits(["ünï", None])) == [8 * 5, 0]
    encoder_only = dataclasses.replace(MINILM, where=("encoder",))
    assert list(TextConditioner(encoder_only).bits(["a dog"])) == [0]
    classes = TextConfig(encoder=LABELS, dim=4, classes=("a", "b", "c", "d"))
    assert list(TextConditioner(classes).bits(["b", None])) == [2, 0]


def test_missing_encoder_error_names_weights_to_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(pretrained.MissingWeights, match=r"text_encoder/t5_xl is missing: .*t5-v1_1-xl"):
        TextConditioner(TextConfig()).encode(["a dog"])
    states, mask = TextConditioner(TextConfig()).encode([None, None])  # without any text no encoder is needed
    assert states.shape == (2, 1, 2048)
    assert not mask.any()


def test_class_is_encoded_as_one_one_hot_token() -> None:
    config = TextConfig(encoder=LABELS, dim=3, classes=("cat", "dog", "sign"))
    states, mask = TextConditioner(config).encode(["dog", None, "cat"])
    assert states[:, 0].tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert mask[:, 0].tolist() == [True, False, True]
    with pytest.raises(ConfigError, match="'cow' is none of the tokenizer's 3 classes"):
        TextConditioner(config).encode(["cow"])
    with pytest.raises(ConfigError, match="2 classes are named, but dim is 3"):
        TextConfig(encoder=LABELS, dim=3, classes=("cat", "dog"))


def test_template_encodes_class_as_text(needs, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = needs("text_encoder/minilm")
    text_conditioner = TextConditioner(dataclasses.replace(MINILM, template="a photo of a {label}"))
    states, mask = text_conditioner.encode(["golden_retriever", None])
    with torch.no_grad():
        expected, expected_mask = encoder.encode(["a photo of a golden retriever"], MINILM.max_tokens)
    assert torch.equal(states[0], expected[0])
    assert mask.tolist() == [expected_mask[0].tolist(), [False] * mask.shape[1]]
    monkeypatch.setattr(text_conditioner, "_captions", None)  # states of a class are computed only once
    assert torch.equal(text_conditioner.encode(["golden_retriever"])[0], expected)
    assert list(text_conditioner.bits(["dog"])) == [8 * 3]
    for template, name in (("a photo", "text_encoder/minilm"), ("a {label}", LABELS)):
        with pytest.raises(ConfigError, match="once, and an encoder that reads it"):
            TextConfig(encoder=name, dim=1, classes=("cat",), template=template)


def test_last_captions_without_stored_features_are_encoded_once(needs, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, encoded = needs("text_encoder/minilm"), []
    text_conditioner = TextConditioner(MINILM)
    captions = ["a dog", None, "a red sign", "a dog"]
    states, mask = text_conditioner.encode(captions)
    assert torch.equal(states[0], states[3])
    assert mask.any(1).tolist() == [True, False, True, True]
    original_encode = type(encoder).encode

    def recording_encode(self: Any, texts: list[str], max_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        encoded.extend(texts)
        return original_encode(self, texts, max_tokens)

    monkeypatch.setattr(type(encoder), "encode", recording_encode)
    assert torch.equal(text_conditioner.encode(captions)[0], states)
    assert not encoded
    text_conditioner.encode(["a long caption of a cat with a hat on a mat, that is " + "very " * 40 + "fat", "a dog"])
    after = text_conditioner.encode(captions[:2])
    assert encoded[-1] == "a dog"
    alone = TextConditioner(MINILM).encode(captions[:2])
    # Bit-identical, as in a resumed run.
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(after, alone, strict=True))


@pytest.fixture
def t5(tmp_path: Path) -> Path:
    """Folder of a small T5 with random weights, in the layout of the Hugging Face hub."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    config = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=50)
    T5EncoderModel(config).save_pretrained(tmp_path / "t5")
    words = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", "a", "red", "sign", "dog"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(tmp_path / "t5" / "tokenizer.json"))
    return tmp_path / "t5"


def test_t5_encoder_loads_from_folder_and_masks_padding(t5: Path) -> None:
    encoder = pretrained.load("text_encoder/t5_small", t5)
    model = T5EncoderModel.from_pretrained(t5).eval()
    with torch.no_grad():
        states, mask = encoder.encode(["a dog", "a red sign a red sign"])
        alone = model(input_ids=torch.tensor([[3, 6, 1]])).last_hidden_state
        cut, _ = encoder.encode(["a red sign a red sign"], max_tokens=4)
    assert encoder.embed_dim == 32
    assert len(encoder.sha256) == 64
    assert mask.tolist() == [[True] * 3 + [False] * 4, [True] * 7]
    assert torch.allclose(states[0, :3], alone[0], atol=1e-5)
    assert cut.shape == (1, 4, 32)


def test_half_precision_t5_outputs_fp32_states(t5: Path, tmp_path: Path) -> None:
    model = T5EncoderModel.from_pretrained(t5)
    for dtype, expected in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        model.to(dtype).save_pretrained(t5)
        encoder = load_t5(t5)
        assert encoder.model.dtype == expected
        assert encoder.encode(["a dog"])[0].dtype == torch.float32


def test_t5_loads_in_the_layout_of_google_releases(t5: Path, tmp_path: Path) -> None:
    """With SentencePiece's own model and pickled weights; the expected ids are computed by sentencepiece itself."""
    import sentencepiece

    sentences = ["a red sign", "a green dog", "a red dog says open", "green signs say open"] * 20
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(sentences),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=20,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (tmp_path / "spiece.model").rename(t5 / "spiece.model")
    (t5 / "tokenizer.json").unlink()
    weights = load_file(t5 / "model.safetensors")
    (t5 / "model.safetensors").unlink()
    torch.save({**weights, "decoder.final_layer_norm.weight": torch.ones(32)}, t5 / "pytorch_model.bin")
    encoder = pretrained.load("text_encoder/t5_small", t5)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(t5 / "spiece.model"))
    texts = ["a red dog", "a green sign says open"]
    expected = [[*pieces.encode(text), 1] for text in texts]
    states, mask = encoder.encode(texts)
    with torch.no_grad():
        alone = encoder.model(input_ids=torch.tensor(expected[:1])).last_hidden_state
    assert mask.sum(1).tolist() == [len(ids) for ids in expected]
    torch.testing.assert_close(states[0, : len(expected[0])], alone[0], atol=1e-5, rtol=0)
    torch.save({"w": Path("/")}, t5 / "pytorch_model.bin")  # something other than tensors
    with pytest.raises(ConfigError, match="no T5 in transformers' layout"):
        load_t5(t5)


def test_rejects_folder_without_complete_t5(t5: Path, tmp_path: Path) -> None:
    (t5 / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a tokenizer"):
        load_t5(t5)
    weights = load_file(t5 / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "final_layer_norm" not in k}, t5 / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ConfigError, match=r"not a whole T5 encoder; encoder.final_layer_norm.weight is missing"):
        load_t5(t5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no T5 in transformers' layout"):
        load_t5(tmp_path / "empty")


def test_rejects_umt5_and_adapter_in_place_of_t5(t5: Path) -> None:
    """UMT5 has position biases in every block; a T5 would silently be loaded without them."""
    config = UMT5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=50)
    UMT5EncoderModel(config).save_pretrained(t5)
    with pytest.raises(ConfigError, match="but of the type umt5"):
        load_t5(t5)
    (t5 / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds an adapter"):
        load_t5(t5)


def test_check_rejects_captions_longer_than_max_tokens(needs, shards: str) -> None:
    text_conditioner = TextConditioner(dataclasses.replace(MINILM, max_tokens=8))
    text_conditioner.check(None)
    text_conditioner.check("a sign that says it all")  # six words between the two special tokens
    with pytest.raises(ConfigError, match=r"9 tokens, the model reads 8; shorten it"):
        text_conditioner.check("a sign that says it all twice")
    states, _ = text_conditioner.encode(["a sign that says it all twice"])  # in training it is truncated
    assert states.shape[1] == 8
    labels = TextConfig(encoder=LABELS, dim=1, classes=("a",))
    TextConditioner(labels).check("any words " * 100)  # a class is not tokenized
