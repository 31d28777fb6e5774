"""Captions by a vision-language model: a tiny LLaVA with random weights, saved and loaded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data
from transformers import (
    BertTokenizerFast,
    CLIPImageProcessor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    GitVisionConfig,
)

from imtok.config import ConfigError
from imtok.data.captions import make_captioner
from imtok.data.pictures import encode
from imtok.data.sample import Sample
from imtok.pretrained.captioner import load_captioner, load_vlm, without_thoughts

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "red", "sign", "dog", "grass", "sea", "house", "sky"]


def test_captions_are_deterministic_and_limited_in_words(tiny_reader: Path) -> None:
    captioner = load_captioner(tiny_reader, max_words=6)
    dog = np.ascontiguousarray(data.astronaut()[:64, :64])
    caption = captioner.caption(dog)
    assert 0 < len(caption.split()) <= 6
    assert set(caption.split()) <= set(WORDS)
    assert captioner.caption(dog) == caption  # no sampling


def test_prompt_matches_the_paper(tiny_reader: Path) -> None:
    prompt = load_captioner(tiny_reader, max_words=25).prompt("golden_retriever")
    assert prompt.startswith(
        "Describe an image of a golden retriever in a single continuous detailed paragraph, using no"
    )
    assert "no more than 25 words" in prompt
    assert "the essence of the golden retriever." in prompt
    assert "{" not in prompt


def test_answer_is_the_first_word_of_the_response(tiny_reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, picture = load_vlm(tiny_reader), np.ascontiguousarray(data.astronaut()[:64, :64])
    assert vlm.answer(picture, "is there a dog?") in ("", *WORDS)
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr(
        vlm, "generate_text", lambda picture, prompt, max_tokens: calls.append((prompt, max_tokens)) or ' "Yes", it is'
    )
    assert vlm.answer(picture, "is there a dog?") == "Yes"
    assert calls == [("is there a dog? Answer yes or no.", 4)]


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("a red dog", "a red dog"),
        ("<think>A dog?</think>\n\na red dog", "a red dog"),
        ("A dog? </think> a red dog", "a red dog"),
        ("<think>The user wants", ""),
    ],
)
def test_thoughts_are_removed_from_captions(text: str, caption: str) -> None:
    assert without_thoughts(text) == caption


@pytest.mark.parametrize("repeats", [True, False], ids=["decoder", "encoder-decoder"])
def test_chat_template_formats_the_prompt(tiny_reader: Path, monkeypatch: pytest.MonkeyPatch, repeats: bool) -> None:
    """The result is the newly generated text alone, whether or not the model repeats the prompt in its output."""
    vlm, prompts = load_vlm(tiny_reader), []
    vlm.processor.chat_template = (
        "{% for part in messages[0].content %}{% if part.type == 'image' %}<image>{% else %} red {{ part.text }}"
        "{% endif %}{% endfor %}{% if not enable_thinking %} sky{% endif %}"
    )
    answer = torch.tensor([[WORDS.index("dog"), WORDS.index("sea")]])

    def generate(input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        prompts.append(vlm.processor.tokenizer.convert_ids_to_tokens(input_ids[0].tolist()))
        return torch.cat([input_ids, answer], 1) if repeats else answer

    monkeypatch.setattr(vlm.model, "generate", generate)
    monkeypatch.setattr(vlm.model.config, "is_encoder_decoder", not repeats)
    picture = np.ascontiguousarray(data.astronaut()[:64, :64])
    assert vlm.generate_text(picture, "grass", 4).split() == ["dog", "sea"]
    (tokens,) = prompts
    images = tokens.count("<image>")
    assert images > 0
    assert tokens == [*["<image>"] * images, "red", "grass", "sky"]


def test_make_captioner_loads_a_folder_and_keeps_existing_captions(tiny_reader: Path) -> None:
    picture = encode(np.ascontiguousarray(data.astronaut()[:64, :64]))
    uncaptioned = Sample(image=picture, path="a.png", width=64, height=64)
    captioner = make_captioner(f"{tiny_reader}:4")
    (caption,) = captioner(uncaptioned)
    assert 0 < len(caption.split()) <= 4
    captioned = Sample(image=picture, path="a.png", width=64, height=64, captions=["its own"])
    assert captioner(captioned) == ["its own"]


def test_code_in_a_model_folder_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "was run"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\n")
    auto = {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model", "AutoProcessor": "evil.Config"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "Evil", "auto_map": auto}))
    with pytest.raises(ConfigError):
        load_captioner(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds an adapter"):
        load_captioner(tmp_path)
    assert not marker.exists()


def test_rejects_a_folder_without_a_captioning_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model that writes about pictures"):
        make_captioner(str(tmp_path))


def test_rejects_a_model_that_takes_no_prompts(tmp_path: Path) -> None:
    """Such as GIT and BLIP, which transformers lists among the models that take a picture and a text."""
    tokenizer = BertTokenizerFast(
        vocab={word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])}
    )
    size = {"height": 32, "width": 32}
    GitProcessor(CLIPImageProcessor(size=size, crop_size=size), tokenizer).save_pretrained(tmp_path / "git")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = GitVisionConfig(**small, image_size=32, patch_size=16)
    GitForCausalLM(GitConfig(vision_config=vision.to_dict(), vocab_size=9, **small)).save_pretrained(tmp_path / "git")
    with pytest.raises(ConfigError, match="its GitProcessor takes no prompt beside a picture"):
        load_captioner(tmp_path / "git")
