"""DiT end to end, conditioned on classes or text; its untrained tokenizer is conditioned on captions too."""

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

TEXT_CONFIG = TextConfig(encoder="text_encoder/minilm", dim=12, max_tokens=16, sha256="of letters")


class Letters(TextEncoder):
    """A text encoder without weights: a word's state is a function of its letters."""

    name, sha256 = "text_encoder/minilm", "of letters"

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.embed_dim = 12

    def check_length(self, max_tokens: int) -> None:
        """Accept any length."""

    def length(self, text: str) -> int:
        return len(text.split())

    def encode(self, texts, max_tokens=128):
        words = [text.split()[:max_tokens] for text in texts]
        length = max(map(len, words))
        states, mask = torch.zeros(len(words), length, 12), torch.zeros(len(words), length, dtype=torch.bool)
        for row, text_words in enumerate(words):
            for position, word in enumerate(text_words):
                seed = torch.Generator().manual_seed(sum(ord(letter) << index for index, letter in enumerate(word[:8])))
                states[row, position], mask[row, position] = torch.randn(12, generator=seed), True
        return states, mask


@pytest.fixture(autouse=True)
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the text encoders in the registry by `Letters`."""
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
        embed(data, TEXT_CONFIG.encoder, TEXT_CONFIG.max_tokens)
        untrained(folder / "textok", text=TEXT_CONFIG)
        encode_pictures(str(folder / "textok"), data, folder / "latents", 64)
    return folder


def debug(text: bool = False) -> GeneratorRunConfig:
    base = presets.get_generator("dit-debug")
    generator = dataclasses.replace(base.generator, text=TEXT_CONFIG) if text else base.generator
    return dataclasses.replace(base, generator=generator)


@pytest.fixture(scope="module")
def trained(home: Path) -> Path:
    latents = str(home / "latents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "load", lambda name: Letters())
        return train(debug(), latents, home / "run", validation=latents)


def test_encoding_keeps_only_captions_given_to_the_tokenizer(home: Path, tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path / "signs")) as writer:
        for sample in open_dataset(home / "signs"):
            writer.write(dataclasses.replace(sample, captions=[*sample.captions, "another"]))
    embed(str(tmp_path / "signs"), TEXT_CONFIG.encoder, TEXT_CONFIG.max_tokens)
    shards = encode_pictures(str(home / "textok"), tmp_path / "signs", tmp_path / "latents", 64)
    assert [shards[row].captions for row in range(len(shards))] == [
        sample.captions[:1] for sample in open_dataset(home / "signs")
    ]


def test_generator_uses_the_text_encoder_of_its_tokenizer(home: Path, tmp_path: Path, monkeypatch) -> None:
    """Other encoder weights and features are installed later: neither a new run nor a resumed one uses them."""
    data = shutil.copytree(home / "signs", tmp_path / "signs")
    encode_pictures(str(home / "textok"), data, tmp_path / "latents", 64)
    monkeypatch.setattr(Letters, "sha256", "of others")
    embed(str(data), TEXT_CONFIG.encoder, TEXT_CONFIG.max_tokens)
    any_weights = dataclasses.replace(TEXT_CONFIG, sha256="")
    config = dataclasses.replace(debug(), generator=dataclasses.replace(debug().generator, text=any_weights))
    run = train(config, str(tmp_path / "latents"), tmp_path / "run")
    assert RunFolder(run).read_config()["generator"]["text"]["sha256"] == TEXT_CONFIG.sha256
    assert train(config, str(tmp_path / "latents"), run, resume=True) == run


def test_latents_are_read_from_a_zip_archive(home: Path, tmp_path: Path) -> None:
    packed = TokenShards(f"zip://::{shutil.make_archive(str(tmp_path / 'latents'), 'zip', home / 'latents')}")
    unpacked = TokenShards(home / "latents")
    assert len(packed) == len(unpacked)
    assert all(np.array_equal(packed[row].values, unpacked[row].values) for row in range(len(unpacked)))


def test_latent_statistics_are_correct_and_tied_to_their_latents(home: Path, tmp_path: Path) -> None:
    shards = TokenShards(home / "latents")
    values = torch.cat([torch.tensor(shards[index].values).double().flatten(0, 1) for index in range(len(shards))])
    statistics = read_statistics(shards)
    assert torch.allclose(torch.tensor(statistics.mean).double(), values.mean(0), atol=1e-6)
    assert torch.allclose(torch.tensor(statistics.std).double(), values.std(0, correction=0), atol=1e-6)
    shutil.copytree(home / "latents", tmp_path / "latents")
    read_statistics(TokenShards(tmp_path / "latents"))  # latents may be moved
    manifest = json.loads((tmp_path / "latents/manifest.json").read_text())
    (tmp_path / "latents/manifest.json").write_text(json.dumps(manifest | {"sha256": "0" * 64}))
    with pytest.raises(DataError, match="of other latents than these; call imtok encode once more"):
        read_statistics(TokenShards(tmp_path / "latents"))
    (tmp_path / "latents/statistics.json").unlink()
    with pytest.raises(DataError, match=r"statistics.json: missing; call imtok encode once more"):
        train(debug(), str(tmp_path / "latents"), tmp_path / "run")


def test_encoder_only_text_needs_no_decoder_conditioner(home: Path, tmp_path: Path) -> None:
    encoder_only = dataclasses.replace(TEXT_CONFIG, where=("encoder",))
    encode_pictures(untrained(tmp_path / "textok", text=encoder_only), home / "signs", tmp_path / "latents", 64)
    run = train(debug(), str(tmp_path / "latents"), tmp_path / "run")
    assert not (run / FOLDER).exists()
    assert imtok.load_generator(str(run)).decoder_conditioner is None


def test_run_learns_and_is_validated_on_held_out_latents(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if "phase" in line}
    held_out = [line["validation/diffusion"] for line in lines if "validation/diffusion" in line]
    assert steps[1]["diffusion"] == pytest.approx(1, abs=0.5)  # a fresh model outputs zero
    assert held_out[-1] < held_out[0] < 1.1
    assert {f"validation/diffusion_{time}" for time in (125, 375, 625, 875)} < set(lines[-1])
    assert len(list((trained / "previews").glob("*.png"))) == 3


@pytest.mark.parametrize("text", [False, True], ids=["class", "text"])
def test_resuming_is_bit_exact(
    home: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bool
) -> None:
    requested, latents = [], str(home / "latents")
    straight = train(debug(text=True), latents, tmp_path / "straight", validation=latents) if text else trained

    def stop(self: TokenLoader, step: int, batch=TokenLoader.batch) -> object:
        requested.append(step)
        if len(requested) == 6:
            raise RuntimeError("killed")
        return batch(self, step)

    real_batch = TokenLoader.batch
    monkeypatch.setattr(TokenLoader, "batch", stop)
    with pytest.raises(RuntimeError, match="killed"):
        train(debug(text=text), latents, tmp_path / "cut", validation=latents)
    monkeypatch.setattr(TokenLoader, "batch", real_batch)
    train(debug(text=text), latents, tmp_path / "cut", validation=latents, resume=True)
    ours, theirs = (load_tensors(folder / "model.safetensors") for folder in (tmp_path / "cut", straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_init_from_keeps_the_latent_statistics_of_the_first_run(home: Path, trained: Path, tmp_path: Path) -> None:
    """Latents are normalized to mean 0 and deviation 1 by the statistics of those that the first run was trained on."""
    shutil.copytree(home / "latents", tmp_path / "latents")
    values = json.loads((tmp_path / "latents/statistics.json").read_text())
    shifted = values | {"mean": [one + 1 for one in values["mean"]]}
    (tmp_path / "latents/statistics.json").write_text(json.dumps(shifted))
    config, latents = debug(), str(tmp_path / "latents")
    run = train(config, latents, tmp_path / "run", init_from=str(trained))
    train(config, latents, tmp_path / "run", resume=True)  # no step is left, and no error is raised
    fresh = train(config, latents, tmp_path / "fresh")
    means = [RunFolder(folder).read_config()["generator"]["latent_mean"] for folder in (trained, run, fresh)]
    assert means == [values["mean"], values["mean"], shifted["mean"]]


def test_moved_class_run_generates_and_decodes_with_unseen_captions(home: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "moved")
    pipeline = imtok.load_generator(str(tmp_path / "moved"))
    label = pipeline.generator.config.classes[1]
    images = pipeline.generate([label, 1, None], seeds=[4, 4, 5], guidance_scale=2)
    assert images.shape == (3, 3, 64, 64)
    assert torch.equal(images[0], images[1])  # class by name or by number: the same picture and caption
    alone = pipeline.generate([1], seed=4, guidance_scale=2)
    assert torch.allclose(alone[0], images[0], atol=1e-4)
    decoder_conditioner = pipeline.decoder_conditioner
    assert decoder_conditioner is not None
    assert decoder_conditioner.unseen is not None
    listed = json.loads(
        next(file for file in (tmp_path / "moved" / FOLDER).iterdir() if label in file.read_text()).read_text()
    )
    captions = {decoder_conditioner.unseen.draw(label, seed) for seed in range(40)}
    assert captions == set(listed["captions"])
    assert not captions & set(distinct_captions(home / "signs"))
    text, expected = (
        decoder_conditioner.encode([label], [4]),
        Letters().encode([decoder_conditioner.unseen.draw(label, 4)], 16),
    )
    assert all(torch.equal(one, wanted) for one, wanted in zip(text, expected, strict=True))
    latents = pipeline.generator.sample([label], [4], pipeline.settings(guidance_scale=2))
    assert torch.allclose(pipeline.decode(latents, text)[0], images[0], atol=1e-4)
    assert not torch.allclose(pipeline.decode(latents, None)[0], images[0], atol=1e-3)  # the caption has an effect


def test_missing_text_encoder_raises_before_sampling(trained: Path, monkeypatch) -> None:
    pipeline = imtok.load_generator(str(trained))

    def raise_missing(name: str, *_: object) -> object:
        raise pretrained.MissingWeights(f"{name} is away")

    monkeypatch.setattr(pretrained, "load", raise_missing)
    monkeypatch.setattr(type(pipeline.generator), "sample", lambda *_: pytest.fail("too late"))
    with pytest.raises(pretrained.MissingWeights, match="is away"):
        pipeline.generate([0])


def test_generate_command_stores_settings_and_rejects_invalid_ones(trained: Path, tmp_path: Path, capsys) -> None:
    flags = ["generate", str(trained), "--labels", "0", "--count", "2", "--seed", "3", "--out", str(tmp_path / "out")]
    more = ["--num-inference-steps", "5", "--guidance-scale", "2", "--guidance-schedule", "constant"]
    assert main([*flags, *more]) == 0
    files = sorted((tmp_path / "out").glob("*.png"))
    assert len(files) == 2
    with Image.open(files[1]) as picture:
        saved = json.loads(picture.info["imtok"])
    assert (saved["label"], saved["seed"], saved["num_inference_steps"], saved["guidance_scale"]) == ("0", 4, 5, 2.0)
    assert saved["guidance_schedule"] == "constant"
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
        stderr = capsys.readouterr().err
        assert message in stderr
        assert stderr.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_text_run_decodes_with_the_prompt_as_caption(home: Path, tmp_path: Path, monkeypatch) -> None:
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
    text = Letters().encode(prompts, 16)
    decoded = pipeline.decode(pipeline.generator.sample(prompts, [1, 2], pipeline.sampling), text)
    assert torch.allclose(decoded, images, atol=1e-5)
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    argv = ["generate", str(run), "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_rejects_tokens_of_the_wrong_kind_or_another_tokenizer(home: Path, trained: Path, tmp_path: Path) -> None:
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


def test_missing_captions_raise_before_the_first_step(home: Path, tmp_path: Path, monkeypatch) -> None:
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


def test_codes_of_a_text_conditioned_tokenizer_can_be_generated(home: Path, tmp_path: Path) -> None:
    untrained(tmp_path / "vq", text=TEXT_CONFIG, quantizer=VQConfig(codebook_size=32, codebook_dim=4))
    encode_pictures(str(tmp_path / "vq"), str(home / "signs"), tmp_path / "codes", 64)
    run = train(presets.get_generator("far-debug"), str(tmp_path / "codes"), tmp_path / "run")
    pipeline = imtok.load_generator(str(run))
    codes = pipeline.generator.sample(["0"], [1])
    assert pipeline.decoder_conditioner is not None
    text = pipeline.decoder_conditioner.encode(pipeline.conditions([0], None), [1])
    assert not torch.allclose(pipeline.decode(codes, text), pipeline.decode(codes, None), atol=1e-3)
    assert pipeline.generate([0], seed=1).shape == (1, 3, 64, 64)


def test_dit_trains_on_latents_of_a_kl_vqgan(home: Path, tmp_path: Path) -> None:
    untrained(tmp_path / "kl", "insighttok-debug", quantizer=ContinuousConfig(codebook_dim=4, kl=True))
    encode_pictures(str(tmp_path / "kl"), str(home / "signs"), tmp_path / "latents", 64)
    base = debug()
    training = dataclasses.replace(base.training, steps=1, preview_every=0)
    run = train(dataclasses.replace(base, training=training), str(tmp_path / "latents"), tmp_path / "run")
    pipeline = imtok.load_generator(str(run))
    assert (pipeline.generator.config.channels, pipeline.generator.config.token_shape) == (4, (8, 8))
    assert pipeline.decoder_conditioner is None
    assert pipeline.generate([0, 1], seed=1).shape == (2, 3, 64, 64)
