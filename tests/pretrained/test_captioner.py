"""Captions by a vision-language model: a tiny LLaVA of random weights, saved and read back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data
from transformers import (
    BertTokenizerFast,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    GitVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from imtok.config import ConfigError
from imtok.data.captions import make_captioner
from imtok.data.pictures import encode
from imtok.data.sample import Sample
from imtok.pretrained.captioner import load_captioner

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "red", "sign", "dog", "grass", "sea", "house", "sky"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("captioner") / "llava"
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    text = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=WORDS.index("<image>"))
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor = CLIPImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        image_processor=processor,
        tokenizer=fast,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def test_a_picture_gets_a_caption_of_its_own(model: Path) -> None:
    captioner = load_captioner(model, max_words=6)
    dog = np.ascontiguousarray(data.astronaut()[:64, :64])
    caption = captioner.caption(dog)
    assert 0 < len(caption.split()) <= 6
    assert set(caption.split()) <= {*WORDS, "<unk>"}
    assert captioner.caption(dog) == caption  # no sampling


def test_the_prompt_is_the_paper_s(model: Path) -> None:
    prompt = load_captioner(model, max_words=25).prompt("golden_retriever")
    assert prompt.startswith(
        "Describe an image of a golden retriever in a single continuous detailed paragraph, using no"
    )
    assert "no more than 25 words" in prompt
    assert "the essence of the golden retriever." in prompt
    assert "{" not in prompt


def test_annotation_takes_the_model_by_its_folder(model: Path) -> None:
    picture = encode(np.ascontiguousarray(data.astronaut()[:64, :64]))
    bare = Sample(image=picture, path="a.png", width=64, height=64)
    captioner = make_captioner(f"{model}:4")
    (caption,) = captioner(bare)
    assert 0 < len(caption.split()) <= 4
    named = Sample(image=picture, path="a.png", width=64, height=64, captions=["its own"])
    assert captioner(named) == ["its own"]


def test_code_in_the_folder_is_never_run(tmp_path: Path) -> None:
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


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model that writes captions of pictures"):
        make_captioner(str(tmp_path))


def test_a_model_without_prompts_is_refused(tmp_path: Path) -> None:
    """Such as GIT and BLIP, which the library counts among those that take a picture and a text."""
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
