"""What tokenizers are told: stored features, the encoder itself, classes, and nothing."""

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


def test_stored_features_are_what_the_encoder_says(shards: str, needs, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("text_encoder/minilm")
    captions = [*distinct_captions(shards), None]
    fresh, there = TextConditioner(MINILM).encode(captions)
    embed(shards, "text_encoder/minilm", max_tokens=16)
    monkeypatch.setattr(pretrained, "load", lambda name: pytest.fail("everything is stored"))
    stored, mask = TextConditioner(MINILM, [shards]).encode(captions)
    assert torch.equal(mask, there)
    assert not mask[-1].any()
    assert torch.allclose(stored, fresh * there[:, :, None], atol=2e-3)


def test_what_is_not_stored_is_read(shards: str, needs) -> None:
    needs("text_encoder/minilm")
    embed(shards, "text_encoder/minilm", max_tokens=16)
    known = next(iter(distinct_captions(shards)))
    both, mask = TextConditioner(MINILM, [shards]).encode([known, "a caption of its own"])
    alone, _ = TextConditioner(MINILM).encode(["a caption of its own"])
    assert torch.allclose(both[1][mask[1]], alone[0], atol=1e-5)


def test_features_of_another_width_and_an_encoder_of_other_weights_are_refused(shards: str, needs) -> None:
    needs("text_encoder/minilm")
    embed(shards, "text_encoder/minilm", max_tokens=16)
    TextConditioner(dataclasses.replace(MINILM, max_tokens=8), [shards])  # another length lies elsewhere
    with pytest.raises(ConfigError, match="of 384 channels, the tokenizer wants 12"):
        TextConditioner(dataclasses.replace(MINILM, dim=12), [shards])
    with pytest.raises(ConfigError, match="has 384 channels, not 12"):
        TextConditioner(dataclasses.replace(MINILM, dim=12)).encode(["a dog"])
    with pytest.raises(ConfigError, match=r"these weights of text_encoder/minilm are not those that the model or its"):
        TextConditioner(dataclasses.replace(MINILM, sha256="of others")).encode(["not stored"])
    needs("perceptual/vgg16")
    with pytest.raises(ConfigError, match="perceptual/vgg16 reads no text"):
        TextConditioner(dataclasses.replace(MINILM, encoder="perceptual/vgg16")).encode(["a dog"])


def test_features_of_two_weights_lie_side_by_side(shards: str, needs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model hears those of the weights that it was trained with, and a new one those of the weights that are here."""
    encoder = needs("text_encoder/minilm")
    other = copy.deepcopy(encoder)
    next(other.model.parameters()).data *= 3
    other.sha256 = "of others"
    captions = [*distinct_captions(shards)]
    with torch.no_grad():
        said = {one.sha256: one.encode(captions, 16)[0] for one in (encoder, other)}
    assert not torch.allclose(*said.values(), atol=0.1)
    for one in (encoder, other):
        monkeypatch.setattr(pretrained, "load", lambda name, one=one: one)
        embed(shards, "text_encoder/minilm", max_tokens=16)
    monkeypatch.setattr(pretrained, "load", lambda name: pytest.fail("everything is stored"))
    for sha256, states in said.items():
        heard, mask = TextConditioner(dataclasses.replace(MINILM, sha256=sha256), [shards]).encode(captions)
        assert torch.allclose(heard, states * mask[:, :, None], atol=2e-3)
    for one in (encoder, other):
        monkeypatch.setattr(pretrained, "load", lambda name, one=one: one)
        assert TextConditioner(MINILM, [shards]).config.sha256 == one.sha256


def test_of_captions_that_are_cut_one_line_tells(needs, caplog: pytest.LogCaptureFixture) -> None:
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


def test_what_will_be_missing_is_said_at_once(shards: str, needs, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("text_encoder/minilm")
    loaded: list[str] = []
    load = pretrained.load
    monkeypatch.setattr(pretrained, "load", lambda name: loaded.append(name) or load(name))
    TextConditioner(MINILM, [shards]).prepare()
    assert loaded == ["text_encoder/minilm"]
    embed(shards, "text_encoder/minilm", max_tokens=16)
    loaded.clear()
    TextConditioner(MINILM, [shards]).prepare()
    TextConditioner(TextConfig(encoder=LABELS, dim=len(VOCABULARY), classes=VOCABULARY), [shards]).prepare()
    assert loaded == []
    with pytest.raises(ConfigError, match="is none of the tokenizer's 1 classes"):
        TextConditioner(TextConfig(encoder=LABELS, dim=1, classes=("cat",)), [shards]).prepare()


def test_captions_beside_pictures_are_found_too(tmp_path: Path, needs, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_length_that_the_encoder_cannot_read(length: int, shards: str, needs) -> None:
    encoder = needs("text_encoder/minilm")
    with pytest.raises(ConfigError, match=rf"minilm: reads at least 3 and at most 512 tokens of a text, not {length}"):
        embed(shards, "text_encoder/minilm", max_tokens=length)
    assert not (Path(shards) / "text_features").exists()
    assert encoder.encode(["a dog that ran"], 3)[1].sum() == 3
    assert encoder.encode(["dog " * 1000], 512)[0].shape == (1, 512, 384)


def test_autocast_changes_nothing(needs) -> None:
    encoder = needs("text_encoder/minilm")
    with torch.no_grad():
        states, _ = encoder.encode(["a red sign"])
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(encoder.encode(["a red sign"])[0], states)


def test_the_bits_are_those_that_the_decoder_is_told() -> None:
    assert list(TextConditioner(MINILM).bits(["ünï", None])) == [8 * 5, 0]
    deaf = dataclasses.replace(MINILM, where=("encoder",))
    assert list(TextConditioner(deaf).bits(["a dog"])) == [0]
    classes = TextConfig(encoder=LABELS, dim=4, classes=("a", "b", "c", "d"))
    assert list(TextConditioner(classes).bits(["b", None])) == [2, 0]


def test_without_encoder_and_features_the_line_says_what_to_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(pretrained.MissingWeights, match=r"text_encoder/t5_xl is missing: .*t5-v1_1-xl"):
        TextConditioner(TextConfig()).encode(["a dog"])
    states, mask = TextConditioner(TextConfig()).encode([None, None])  # nothing to read, nothing missing
    assert states.shape == (2, 1, 2048)
    assert not mask.any()


def test_a_class_is_a_word_of_its_own() -> None:
    config = TextConfig(encoder=LABELS, dim=3, classes=("cat", "dog", "sign"))
    states, mask = TextConditioner(config).encode(["dog", None, "cat"])
    assert states[:, 0].tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert mask[:, 0].tolist() == [True, False, True]
    with pytest.raises(ConfigError, match="'cow' is none of the tokenizer's 3 classes"):
        TextConditioner(config).encode(["cow"])
    with pytest.raises(ConfigError, match="2 classes are named, but dim is 3"):
        TextConfig(encoder=LABELS, dim=3, classes=("cat", "dog"))


def test_a_template_tells_the_class_in_words(needs, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = needs("text_encoder/minilm")
    text_conditioner = TextConditioner(dataclasses.replace(MINILM, template="a photo of a {label}"))
    states, mask = text_conditioner.encode(["golden_retriever", None])
    with torch.no_grad():
        wanted, there = encoder.encode(["a photo of a golden retriever"], MINILM.max_tokens)
    assert torch.equal(states[0], wanted[0])
    assert mask.tolist() == [there[0].tolist(), [False] * mask.shape[1]]
    monkeypatch.setattr(text_conditioner, "_captions", None)  # what was read once is not read again
    assert torch.equal(text_conditioner.encode(["golden_retriever"])[0], wanted)
    assert list(text_conditioner.bits(["dog"])) == [8 * 3]
    for template, name in (("a photo", "text_encoder/minilm"), ("a {label}", LABELS)):
        with pytest.raises(ConfigError, match="once, and an encoder that reads it"):
            TextConfig(encoder=name, dim=1, classes=("cat",), template=template)


def test_captions_that_are_not_stored_are_read_once_where_they_are_asked_for_twice(
    needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, asked = needs("text_encoder/minilm"), []
    text_conditioner = TextConditioner(MINILM)
    captions = ["a dog", None, "a red sign", "a dog"]
    states, mask = text_conditioner.encode(captions)
    assert torch.equal(states[0], states[3])
    assert mask.any(1).tolist() == [True, False, True, True]
    read = type(encoder).encode

    def listen(self: Any, texts: list[str], most: int) -> tuple[torch.Tensor, torch.Tensor]:
        asked.extend(texts)
        return read(self, texts, most)

    monkeypatch.setattr(type(encoder), "encode", listen)
    assert torch.equal(text_conditioner.encode(captions)[0], states)
    assert not asked
    text_conditioner.encode(["a long caption of a cat with a hat on a mat, that is " + "very " * 40 + "fat", "a dog"])
    after = text_conditioner.encode(captions[:2])
    assert asked[-1] == "a dog"
    alone = TextConditioner(MINILM).encode(captions[:2])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(after, alone, strict=True))  # a resumed run's bits


@pytest.fixture
def t5(tmp_path: Path) -> Path:
    """A small T5 of random weights in the layout of a hub's folder."""
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


def test_t5_s_encoder_is_read_from_a_folder_and_masks_its_padding(t5: Path) -> None:
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


def test_t5_in_half_precision_runs_in_full(t5: Path, tmp_path: Path) -> None:
    model = T5EncoderModel.from_pretrained(t5)
    for dtype, kept in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        model.to(dtype).save_pretrained(t5)
        encoder = load_t5(t5)
        assert encoder.model.dtype == kept
        assert encoder.encode(["a dog"])[0].dtype == torch.float32


def test_t5_is_read_as_google_has_put_it_out(t5: Path, tmp_path: Path) -> None:
    """With SentencePiece's own model and a pickle of the weights; sentencepiece itself says what the ids are."""
    import sentencepiece

    words = ["a red sign", "a green dog", "a red dog says open", "green signs say open"] * 20
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(words),
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
    torch.save({"w": Path("/")}, t5 / "pytorch_model.bin")  # anything but tensors
    with pytest.raises(ConfigError, match="no T5 in transformers' layout"):
        load_t5(t5)


def test_a_folder_that_is_no_t5_is_refused(t5: Path, tmp_path: Path) -> None:
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


def test_what_looks_like_a_t5_is_refused(t5: Path) -> None:
    """UMT5 has position biases in every block, and a T5 would do without them and say nothing."""
    config = UMT5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=50)
    UMT5EncoderModel(config).save_pretrained(t5)
    with pytest.raises(ConfigError, match="but of the type umt5"):
        load_t5(t5)
    (t5 / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds an adapter"):
        load_t5(t5)


def test_a_caption_is_checked_for_its_length(needs, shards: str) -> None:
    text_conditioner = TextConditioner(dataclasses.replace(MINILM, max_tokens=8))
    text_conditioner.check(None)
    text_conditioner.check("a sign that says it all")  # six words between the frame's two tokens
    with pytest.raises(ConfigError, match=r"9 tokens, the model reads 8; shorten it"):
        text_conditioner.check("a sign that says it all twice")
    states, _ = text_conditioner.encode(["a sign that says it all twice"])  # in training it is cut
    assert states.shape[1] == 8
    labels = TextConfig(encoder=LABELS, dim=1, classes=("a",))
    TextConditioner(labels).check("any words " * 100)  # a class is no text
