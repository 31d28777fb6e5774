"""DiT from pictures to pictures, by class and by text, over an untrained tokenizer that draws from captions too."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import imtok
from imtok import presets, pretrained
from imtok.checkpoints import RunFolder, load_tensors
from imtok.cli import main
from imtok.config import ConfigError, to_dict
from imtok.data.latent_statistics import read_statistics
from imtok.data.readers import open_dataset
from imtok.data.sample import DataError
from imtok.data.shards import ShardWriter
from imtok.data.synthetic import SyntheticPictures
from imtok.data.text_features import distinct_captions, embed
from imtok.data.token_loader import TokenLoader
from imtok.data.token_shards import TokenShards
from imtok.data.unseen_captions import FOLDER, write_unseen_captions
from imtok.pretrained.language import TextEncoder
from imtok.tokenizers import ContinuousConfig, VQConfig, build
from imtok.tokenizers.encode import encode_pictures
from imtok.tokenizers.text import TextConfig
from imtok.training.launch import train
from imtok.training.run import GeneratorRunConfig

HEARD = TextConfig(encoder="text_encoder/minilm", dim=12, max_tokens=16, sha256="of letters")


class Letters(TextEncoder):
    """A text encoder without weights: a word's state is a function of its letters."""

    name, sha256 = "text_encoder/minilm", "of letters"

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.embed_dim = 12

    def check_length(self, max_tokens: int) -> None:
        """Any will do."""

    def length(self, text: str) -> int:
        return len(text.split())

    def encode(self, texts, max_tokens=128):
        words = [text.split()[:max_tokens] for text in texts]
        length = max(map(len, words))
        states, mask = torch.zeros(len(words), length, 12), torch.zeros(len(words), length, dtype=torch.bool)
        for row, of_it in enumerate(words):
            for place, word in enumerate(of_it):
                seed = torch.Generator().manual_seed(sum(ord(letter) << index for index, letter in enumerate(word[:8])))
                states[row, place], mask[row, place] = torch.randn(12, generator=seed), True
        return states, mask


@pytest.fixture(autouse=True)
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the text encoders in the registry."""
    monkeypatch.setattr(pretrained, "load", lambda name: Letters())


def untrained(folder: Path, preset: str = "textok-debug", **changes: object) -> str:
    torch.manual_seed(0)
    base = presets.get(preset)
    config = dataclasses.replace(base, tokenizer=dataclasses.replace(base.tokenizer, **changes))  # pyright: ignore[reportArgumentType]
    run = RunFolder(folder)
    run.write_config(to_dict(config))
    run.write_model(build(config.tokenizer).weights())
    return str(run.path)


def signs(folder: Path, seed: int, count: int = 24) -> str:
    with ShardWriter(str(folder)) as writer:
        for sample in SyntheticPictures(count, seed=seed, size=64, word_height=(12.0, 24.0)):
            writer.write(sample)
    return str(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Signs with unseen captions and text features, a tokenizer that is conditioned on captions, and the latents."""
    folder = tmp_path_factory.mktemp("dit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "load", lambda name: Letters())
        data = signs(folder / "signs", seed=0)
        write_unseen_captions(data, signs(folder / "others", seed=1, count=100), per_class=4)
        embed(data, HEARD.encoder, HEARD.max_tokens)
        untrained(folder / "textok", text=HEARD)
        encode_pictures(str(folder / "textok"), data, folder / "latents", 64)
    return folder


def debug(text: bool = False) -> GeneratorRunConfig:
    base = presets.get_generator("dit-debug")
    generator = dataclasses.replace(base.generator, text=HEARD) if text else base.generator
    return dataclasses.replace(base, generator=generator)


@pytest.fixture(scope="module")
def trained(home: Path) -> Path:
    latents = str(home / "latents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "load", lambda name: Letters())
        return train(debug(), latents, home / "run", validation=latents)


def test_of_captions_those_that_the_tokenizer_has_heard_are_kept(home: Path, tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path / "signs")) as writer:
        for sample in open_dataset(home / "signs"):
            writer.write(dataclasses.replace(sample, captions=[*sample.captions, "another"]))
    embed(str(tmp_path / "signs"), HEARD.encoder, HEARD.max_tokens)
    shards = encode_pictures(str(home / "textok"), tmp_path / "signs", tmp_path / "latents", 64)
    assert [shards[row].captions for row in range(len(shards))] == [
        sample.captions[:1] for sample in open_dataset(home / "signs")
    ]


def test_of_two_encoders_the_tokenizer_s_is_heard(home: Path, tmp_path: Path, monkeypatch) -> None:
    """Others are installed and stored beside it: neither a new run nor one that goes on takes these."""
    data = shutil.copytree(home / "signs", tmp_path / "signs")
    encode_pictures(str(home / "textok"), data, tmp_path / "latents", 64)
    monkeypatch.setattr(Letters, "sha256", "of others")
    embed(str(data), HEARD.encoder, HEARD.max_tokens)
    anyone = dataclasses.replace(HEARD, sha256="")
    config = dataclasses.replace(debug(), generator=dataclasses.replace(debug().generator, text=anyone))
    run = train(config, str(tmp_path / "latents"), tmp_path / "run")
    assert RunFolder(run).read_config()["generator"]["text"]["sha256"] == HEARD.sha256
    assert train(config, str(tmp_path / "latents"), run, resume=True) == run


def test_latents_may_lie_in_an_archive(home: Path, tmp_path: Path) -> None:
    packed = TokenShards(f"zip://::{shutil.make_archive(str(tmp_path / 'latents'), 'zip', home / 'latents')}")
    there = TokenShards(home / "latents")
    assert len(packed) == len(there)
    assert all(np.array_equal(packed[row].values, there[row].values) for row in range(len(there)))


def test_latents_are_measured_and_the_measure_is_bound_to_them(home: Path, tmp_path: Path) -> None:
    shards = TokenShards(home / "latents")
    values = torch.cat([torch.tensor(shards[index].values).double().flatten(0, 1) for index in range(len(shards))])
    found = read_statistics(shards)
    assert torch.allclose(torch.tensor(found.mean).double(), values.mean(0), atol=1e-6)
    assert torch.allclose(torch.tensor(found.std).double(), values.std(0, correction=0), atol=1e-6)
    shutil.copytree(home / "latents", tmp_path / "latents")
    read_statistics(TokenShards(tmp_path / "latents"))  # they may move
    manifest = json.loads((tmp_path / "latents/manifest.json").read_text())
    (tmp_path / "latents/manifest.json").write_text(json.dumps(manifest | {"sha256": "0" * 64}))
    with pytest.raises(DataError, match="of other latents than these; call imtok encode once more"):
        read_statistics(TokenShards(tmp_path / "latents"))
    (tmp_path / "latents/statistics.json").unlink()
    with pytest.raises(DataError, match=r"statistics.json: missing; call imtok encode once more"):
        train(debug(), str(tmp_path / "latents"), tmp_path / "run")


def test_what_only_the_encoder_hears_needs_no_telling(home: Path, tmp_path: Path) -> None:
    heard = dataclasses.replace(HEARD, where=("encoder",))
    encode_pictures(untrained(tmp_path / "textok", text=heard), home / "signs", tmp_path / "latents", 64)
    run = train(debug(), str(tmp_path / "latents"), tmp_path / "run")
    assert not (run / FOLDER).exists()
    assert imtok.load_generator(str(run)).decoder_conditioner is None


def test_a_run_learns_and_looks_at_held_out_latents(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if "phase" in line}
    held_out = [line["validation/diffusion"] for line in lines if "validation/diffusion" in line]
    assert steps[1]["diffusion"] == pytest.approx(1, abs=0.5)  # a fresh model answers zero
    assert held_out[-1] < held_out[0] < 1.1
    assert {f"validation/diffusion_{time}" for time in (125, 375, 625, 875)} < set(lines[-1])
    assert len(list((trained / "previews").glob("*.png"))) == 3


@pytest.mark.parametrize("text", [False, True], ids=["class", "text"])
def test_resuming_gives_the_same_bits(
    home: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bool
) -> None:
    taken, latents = [], str(home / "latents")
    straight = train(debug(text=True), latents, tmp_path / "straight", validation=latents) if text else trained

    def stop(self: TokenLoader, step: int, batch=TokenLoader.batch) -> object:
        taken.append(step)
        if len(taken) == 6:
            raise RuntimeError("killed")
        return batch(self, step)

    whole = TokenLoader.batch
    monkeypatch.setattr(TokenLoader, "batch", stop)
    with pytest.raises(RuntimeError, match="killed"):
        train(debug(text=text), latents, tmp_path / "cut", validation=latents)
    monkeypatch.setattr(TokenLoader, "batch", whole)
    train(debug(text=text), latents, tmp_path / "cut", validation=latents, resume=True)
    ours, theirs = (load_tensors(folder / "model.safetensors") for folder in (tmp_path / "cut", straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_other_pictures_are_measured_as_the_weights_know_it(home: Path, trained: Path, tmp_path: Path) -> None:
    """Mean 0 and deviation 1 are those of the latents that the first run was trained on."""
    shutil.copytree(home / "latents", tmp_path / "latents")
    values = json.loads((tmp_path / "latents/statistics.json").read_text())
    moved = values | {"mean": [one + 1 for one in values["mean"]]}
    (tmp_path / "latents/statistics.json").write_text(json.dumps(moved))
    config, latents = debug(), str(tmp_path / "latents")
    run = train(config, latents, tmp_path / "run", init_from=str(trained))
    train(config, latents, tmp_path / "run", resume=True)  # there is nothing left to do, and nothing to mind
    fresh = train(config, latents, tmp_path / "fresh")
    means = [RunFolder(folder).read_config()["generator"]["latent_mean"] for folder in (trained, run, fresh)]
    assert means == [values["mean"], values["mean"], moved["mean"]]


def test_by_class_it_opens_anywhere_and_tells_the_tokenizer_unseen_captions(
    home: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "moved")
    pipeline = imtok.load_generator(str(tmp_path / "moved"))
    label = pipeline.generator.config.classes[1]
    images = pipeline.generate([label, 1, None], seeds=[4, 4, 5], guidance_scale=2)
    assert images.shape == (3, 3, 64, 64)
    assert torch.equal(images[0], images[1])  # by name or by number: the same picture, told the same caption
    alone = pipeline.generate([1], seed=4, guidance_scale=2)
    assert torch.allclose(alone[0], images[0], atol=1e-4)
    decoder_conditioner = pipeline.decoder_conditioner
    assert decoder_conditioner is not None
    assert decoder_conditioner.unseen is not None
    listed = json.loads(
        next(file for file in (tmp_path / "moved" / FOLDER).iterdir() if label in file.read_text()).read_text()
    )
    told = {decoder_conditioner.unseen.draw(label, seed) for seed in range(40)}
    assert told == set(listed["captions"])
    assert not told & set(distinct_captions(home / "signs"))
    text, expected = (
        decoder_conditioner.encode([label], [4]),
        Letters().encode([decoder_conditioner.unseen.draw(label, 4)], 16),
    )
    assert all(torch.equal(one, wanted) for one, wanted in zip(text, expected, strict=True))
    latents = pipeline.generator.sample([label], [4], pipeline.settings(guidance_scale=2))
    assert torch.allclose(pipeline.decode(latents, text)[0], images[0], atol=1e-4)
    assert not torch.allclose(pipeline.decode(latents, None)[0], images[0], atol=1e-3)  # the caption is heard


def test_a_text_encoder_that_is_not_here_is_missed_before_anything_is_drawn(trained: Path, monkeypatch) -> None:
    pipeline = imtok.load_generator(str(trained))

    def away(name: str, *_: object) -> object:
        raise pretrained.MissingWeights(f"{name} is away")

    monkeypatch.setattr(pretrained, "load", away)
    monkeypatch.setattr(type(pipeline.generator), "sample", lambda *_: pytest.fail("too late"))
    with pytest.raises(pretrained.MissingWeights, match="is away"):
        pipeline.generate([0])


def test_the_verb_writes_files_with_their_settings(trained: Path, tmp_path: Path, capsys) -> None:
    flags = ["generate", str(trained), "--labels", "0", "--count", "2", "--seed", "3", "--out", str(tmp_path / "out")]
    more = ["--num-inference-steps", "5", "--guidance-scale", "2", "--guidance-schedule", "constant"]
    assert main([*flags, *more]) == 0
    files = sorted((tmp_path / "out").glob("*.png"))
    assert len(files) == 2
    with Image.open(files[1]) as picture:
        about = json.loads(picture.info["imtok"])
    assert (about["label"], about["seed"], about["num_inference_steps"], about["guidance_scale"]) == ("0", 4, 5, 2.0)
    assert about["guidance_schedule"] == "constant"
    capsys.readouterr()
    for argv, message in (
        (["--num-inference-steps", "0"], "num_inference_steps = 0 must be 1 to 1000"),
        (["--num-inference-steps", "1000000"], "num_inference_steps = 1000000 must be 1 to 1000"),
        (["--temperature", "1"], "no setting of sampling is called temperature; there are guidance_power,"),
        (["--guidance-scale", "1", "2"], "2 guidance scales; latents have one for all channels"),
        (
            ["--guidance-schedule", "linear"],
            "guidance_schedule: Input should be 'constant' or 'power_cosine'",
        ),
    ):
        assert main([*flags[:-1], str(tmp_path / "none"), *argv]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_by_text_the_prompt_is_the_tokenizer_s_caption_too(home: Path, tmp_path: Path, monkeypatch) -> None:
    latents = str(home / "latents")
    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "load", lambda name: pytest.fail("all captions are stored"))
        run = train(debug(text=True), latents, tmp_path / "run", validation=latents)
    assert not (run / FOLDER).exists()
    shutil.copytree(run, tmp_path / "moved")
    pipeline = imtok.load_generator(str(tmp_path / "moved"))
    assert pipeline.decoder_conditioner is not None
    assert pipeline.decoder_conditioner.text_conditioner is pipeline.generator.text_conditioner  # one encoder for both
    prompts = ["a red sign that says OPEN", "a dog"]
    with pytest.raises(ConfigError, match="shorten it"):
        pipeline.generate(prompts="a red sign " * 100)
    broken = "a red \udce9 sign"  # a byte of another encoding, as the shell hands it over
    assert torch.equal(pipeline.generate(prompts=broken), pipeline.generate(prompts="a red \\udce9 sign"))
    images = pipeline.generate(prompts=prompts, seed=1)
    assert images.shape == (2, 3, 64, 64)
    told = Letters().encode(prompts, 16)
    drawn = pipeline.decode(pipeline.generator.sample(prompts, [1, 2], pipeline.sampling), told)
    assert torch.allclose(drawn, images, atol=1e-5)
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    argv = ["generate", str(run), "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_what_does_not_fit_is_said_in_a_line(home: Path, trained: Path, tmp_path: Path) -> None:
    latents = str(home / "latents")
    untrained(tmp_path / "dual", "fqgan-debug")
    encode_pictures(str(tmp_path / "dual"), str(home / "signs"), tmp_path / "codes", 64)
    with pytest.raises(ConfigError, match="codes: holds codes; this generator wants latents of a continuous tokenizer"):
        train(debug(), str(tmp_path / "codes"), tmp_path / "run")
    with pytest.raises(
        ConfigError, match="latents: holds latents of a continuous tokenizer; this generator wants codes"
    ):
        train(presets.get_generator("far-debug"), latents, tmp_path / "run")
    shutil.copytree(trained, tmp_path / "started")
    untrained(tmp_path / "other", text=None)
    encode_pictures(str(tmp_path / "other"), str(home / "signs"), tmp_path / "others", 64)
    with pytest.raises(ConfigError, match=r"made by another tokenizer than what .*started was started on"):
        train(debug(), str(tmp_path / "others"), tmp_path / "started", resume=True)
    with pytest.raises(ConfigError, match="others: of another tokenizer or resolution than"):
        train(debug(), latents, tmp_path / "run", validation=str(tmp_path / "others"))


def test_captions_that_are_not_there_are_missed_before_the_first_step(home: Path, tmp_path: Path, monkeypatch) -> None:
    data = shutil.copytree(home / "signs", tmp_path / "signs")
    encode_pictures(str(home / "textok"), data, tmp_path / "latents", 64)
    shutil.rmtree(data / FOLDER)
    with pytest.raises(DataError, match="unseen_captions: no unseen captions there; imtok captions writes them"):
        train(debug(), str(tmp_path / "latents"), tmp_path / "run")
    shutil.rmtree(data / "text_features")
    monkeypatch.setattr(pretrained, "load", lambda name: missing(name))
    with pytest.raises(
        pretrained.MissingWeights, match=r"the caption '.*' is not stored beside .*signs.* and minilm is"
    ):
        train(debug(text=True), str(tmp_path / "latents"), tmp_path / "run")


def missing(name: str) -> None:
    raise pretrained.MissingWeights("minilm is missing")


def test_codes_of_such_a_tokenizer_can_be_generated_too(home: Path, tmp_path: Path) -> None:
    untrained(tmp_path / "vq", text=HEARD, quantizer=VQConfig(codebook_size=32, codebook_dim=4))
    encode_pictures(str(tmp_path / "vq"), str(home / "signs"), tmp_path / "codes", 64)
    run = train(presets.get_generator("far-debug"), str(tmp_path / "codes"), tmp_path / "run")
    pipeline = imtok.load_generator(str(run))
    codes = pipeline.generator.sample(["0"], [1])
    assert pipeline.decoder_conditioner is not None
    told = pipeline.decoder_conditioner.encode(pipeline.conditions([0], None), [1])
    assert not torch.allclose(pipeline.decode(codes, told), pipeline.decode(codes, None), atol=1e-3)
    assert pipeline.generate([0], seed=1).shape == (1, 3, 64, 64)


def test_any_continuous_tokenizer_will_do(home: Path, tmp_path: Path) -> None:
    untrained(tmp_path / "kl", "insighttok-debug", quantizer=ContinuousConfig(codebook_dim=4, kl=True))
    encode_pictures(str(tmp_path / "kl"), str(home / "signs"), tmp_path / "latents", 64)
    base = debug()
    training = dataclasses.replace(base.training, steps=1, preview_every=0)
    run = train(dataclasses.replace(base, training=training), str(tmp_path / "latents"), tmp_path / "run")
    pipeline = imtok.load_generator(str(run))
    assert (pipeline.generator.config.channels, pipeline.generator.config.token_shape) == (4, (8, 8))
    assert pipeline.decoder_conditioner is None
    assert pipeline.generate([0, 1], seed=1).shape == (2, 3, 64, 64)
