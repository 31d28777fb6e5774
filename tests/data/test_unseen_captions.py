"""New captions of every class: none that a training picture has, from any source, even after interruptions."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from imtok.cli import main
from imtok.config import ConfigError
from imtok.data import unseen_captions
from imtok.data.sample import DataError
from imtok.data.shards import ShardWriter
from imtok.data.synthetic import SyntheticPictures
from imtok.data.unseen_captions import UnseenCaptions, captions_by_class, write_unseen_captions
from imtok.pretrained.writer import load_writer

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "red", "sign", "dog", "grass", "sea", "house", "sky"]


def signs(folder: Path, seed: int, count: int = 60) -> str:
    with ShardWriter(str(folder)) as writer:
        for sample in SyntheticPictures(count, seed=seed, size=48, word_height=(10.0, 20.0)):
            writer.write(sample)
    return str(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return signs(tmp_path_factory.mktemp("shards") / "signs", seed=0)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> str:
    return signs(tmp_path_factory.mktemp("shards") / "others", seed=1, count=200)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("writer") / "llama"
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def fresh(shards: str) -> str:
    """The shards, without lists of unseen captions."""
    for file in (Path(shards) / unseen_captions.FOLDER).glob("*"):
        file.unlink()
    return shards


def test_takes_new_captions_from_other_pictures(fresh: str, others: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["captions", fresh, "--source", others, "--per-class", "3"]) == 0
    lists = UnseenCaptions(capsys.readouterr().out.strip())
    known, available = captions_by_class(fresh), captions_by_class(others)
    assert set(lists.labels) == set(known)
    for label in known:
        sampled = {lists.draw(label, seed) for seed in range(60)}
        assert len(sampled) == 3
        assert sampled <= set(available[label])
        assert not sampled & set(known[label])
        assert lists.draw(label, 5) == lists.draw(label, 5)


def test_rejects_source_with_only_captions_of_training_pictures(fresh: str) -> None:
    with pytest.raises(DataError, match="gave no caption that no training picture has"):
        write_unseen_captions(fresh, fresh)


def test_finds_few_new_captions_among_many_known_ones(fresh: str, tmp_path: Path, capfd) -> None:
    label = next(iter(captions_by_class(fresh)))
    with ShardWriter(str(tmp_path / "mixed")) as writer:
        for other, captions in captions_by_class(fresh).items():
            (picture,) = SyntheticPictures(1, seed=9, size=48, word_height=(10.0, 20.0))
            mixed = [*captions * 30, "a new one", "another"] if other == label else [*captions, "a new one", "another"]
            writer.write(dataclasses.replace(picture, label=other, captions=mixed))
    lists = UnseenCaptions(write_unseen_captions(fresh, str(tmp_path / "mixed"), per_class=5, references=1))
    assert {lists.draw(label, seed) for seed in range(20)} == {"a new one", "another"}
    output = capfd.readouterr()
    assert f"{label}: {tmp_path}/mixed gave only 2 new captions of 5" in output.out + output.err


def test_rewrites_list_with_a_caption_that_a_new_training_picture_has(shards: str, others: str, tmp_path: Path) -> None:
    fresh = str(tmp_path / "shards")
    shutil.copytree(shards, fresh, ignore=shutil.ignore_patterns(unseen_captions.FOLDER))
    folder = Path(write_unseen_captions(fresh, others, per_class=2))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    label = UnseenCaptions(folder).labels[0]
    (picture,) = SyntheticPictures(1, seed=9, size=48, word_height=(10.0, 20.0))
    known = UnseenCaptions(folder).draw(label, 0)
    with ShardWriter(fresh, first_shard=7) as writer:
        writer.write(dataclasses.replace(picture, label=label, captions=[known]))
    write_unseen_captions(fresh, others, per_class=2)
    assert known not in set(UnseenCaptions(folder).captions())
    assert sum(file.read_bytes() == before[file.name] for file in folder.iterdir()) == len(before) - 1
    next(iter(folder.glob("[0-9a-f]*.json"))).write_text('{"label": "x", "captions": []}')
    with pytest.raises(DataError, match="names no label and captions"):
        UnseenCaptions(folder)


def test_references_are_captions_of_the_same_class(fresh: str, others: str, monkeypatch) -> None:
    """A language model's references are captions of training pictures of the class, redrawn for each new caption."""
    known, shown = captions_by_class(fresh), []

    def write(label: str, references: list[str], seed: int) -> str:
        shown.append((label, tuple(references)))
        return f"{label} {seed}"

    monkeypatch.setattr(unseen_captions, "_open", lambda *_: write)
    write_unseen_captions(fresh, others, per_class=6, references=2)
    for label, captions in known.items():
        class_references = [references for shown_label, references in shown if shown_label == label]
        assert all(set(references) <= set(captions) for references in class_references)
        assert len(captions) < 3 or len(set(class_references)) > 1


def test_interruption_loses_only_the_current_class(
    fresh: str, others: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(write_unseen_captions(fresh, others, per_class=2))
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    for file in folder.iterdir():
        file.unlink()
    invent, calls = unseen_captions._invent, []

    def killed(*arguments):
        calls.append(arguments[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return invent(*arguments)

    monkeypatch.setattr(unseen_captions, "_invent", killed)
    with pytest.raises(KeyboardInterrupt):
        write_unseen_captions(fresh, others, per_class=2)
    write_unseen_captions(fresh, others, per_class=2)
    assert len(calls) == len(captions_by_class(fresh)) + 1  # only the interrupted class was started twice
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole


def test_language_model_writes_captions(fresh: str, model: Path) -> None:
    writer = load_writer(model, max_words=5)
    written = [writer.write("golden_retriever", ["red dog", "dog sea"], seed) for seed in range(12)]
    assert max(len(caption.split()) for caption in written) == 5
    assert written == [writer.write("golden_retriever", ["red dog", "dog sea"], seed) for seed in range(12)]
    assert len(set(written)) > 6
    writer.tokenizer.chat_template = "red {{ messages[0]['content'] }}{% if not enable_thinking %} sea{% endif %}"
    with pytest.MonkeyPatch.context() as patch:
        given = []
        patch.setattr(writer.model, "generate", lambda **kw: given.append(kw["input_ids"]) or kw["input_ids"])
        assert writer.write("golden_retriever", ["red dog", "dog sea"], 0) == ""  # the model outputs only the prompt
    prompt_words = writer.tokenizer.decode(given[0][0]).split()
    assert (prompt_words[0], prompt_words[-1]) == ("red", "sea")
    writer.tokenizer.chat_template = None
    prompt = writer.prompt("golden_retriever", ["red dog", "dog sea"])
    assert "golden retriever" in prompt
    assert "- red dog\n- dog sea\n" in prompt
    lists = UnseenCaptions(write_unseen_captions(fresh, f"{model}:4", per_class=2))
    assert all(0 < len(lists.draw(label, 0).split()) <= 4 for label in lists.labels)


def test_rejects_changed_settings_unknown_classes_and_bad_sources(fresh: str, others: str, tmp_path: Path) -> None:
    write_unseen_captions(fresh, others, per_class=2)
    with pytest.raises(DataError, match="was begun in another way"):
        write_unseen_captions(fresh, others, per_class=3)
    shutil.copy(next(Path(others).glob("*.parquet")), Path(others) / "more.parquet")
    with pytest.raises(DataError, match="was begun in another way"):
        write_unseen_captions(fresh, others, per_class=2)
    with pytest.raises(DataError, match="has no captions of 'dogs', only of"):
        UnseenCaptions(Path(fresh) / unseen_captions.FOLDER).draw("dogs", 0)
    with pytest.raises(DataError, match="imtok captions writes them"):
        UnseenCaptions(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no model that writes text"):
        write_unseen_captions(others, str(tmp_path))


def test_failed_source_leaves_nothing_behind(fresh: str, others: str, tmp_path: Path) -> None:
    for source, reason in ((str(tmp_path / "typo"), "no such file or folder"), (fresh, "gave no caption")):
        with pytest.raises(DataError, match=reason):
            write_unseen_captions(fresh, source)
    write_unseen_captions(fresh, others, per_class=1)
    with pytest.raises(DataError, match="seed must not be negative"):
        write_unseen_captions(fresh, others, seed=-1)
