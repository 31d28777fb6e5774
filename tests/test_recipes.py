"""The recipes: their data splits, the settings in which their runs differ, and all of them run in a few steps."""

import dataclasses
import json
import shutil
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ablation
import branches
import choose_sampling
import dit_nano
import far_nano
import fqgan_nano
import insightar_nano
import legibility
import nano
import nano_ablations
import nano_data
import numpy as np
import pytest
import signs
import textok_nano
import torch
from legibility import kinds_of
from PIL import Image
from skimage import data

from imtok import presets
from imtok.checkpoints import RunFolder, load_tensors
from imtok.config import to_dict
from imtok.data.plain_signs import PlainSigns, PlainSplit
from imtok.data.readers import open_dataset
from imtok.data.shards import ShardReader, ShardWriter
from imtok.data.token_shards import TokenShards
from imtok.evaluation.results import Evaluation, Result, Score
from imtok.tokenizers.catalog import build
from imtok.tokenizers.catalog import load as load_tokenizer
from imtok.training.run import GeneratorRunConfig, RunConfig, TrainingConfig
from imtok.training.tasks import TokenizerTask

RECIPES = Path(__file__).parents[1] / "recipes"


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, values


def differences(a: RunConfig, b: RunConfig) -> set[str]:
    """Names of the settings in which two runs differ; phases are compared by position."""
    values = []
    for config in (a, b):
        plain = to_dict(config)
        plain["training"]["phases"] = dict(enumerate(plain["training"]["phases"]))
        values.append(dict(leaves({k: v for k, v in plain.items() if k != "name"})))
    names = values[0].keys() | values[1].keys()
    return {name for name in names if values[0].get(name) != values[1].get(name)}


@pytest.mark.parametrize("suffix", ["", "-finetune"])
def test_twins_differ_only_in_text_and_face_losses(suffix: str) -> None:
    a, b = (presets.get(f"{name}{suffix}") for name in nano.TWINS)
    names = {name.rpartition(".")[2] for name in differences(a, b)}
    assert names == {"text", "face", "name"}  # the name of the phase
    assert {p.steps for p in a.training.phases} == {p.steps for p in b.training.phases}


def test_both_twins_begin_with_the_shared_pretraining_phases() -> None:
    shared = presets.get(nano.PRETRAINING).training.phases
    for name in nano.TWINS:
        assert presets.get(name).training.phases[: len(shared)] == shared
        assert presets.get(f"{name}-finetune").training.phases == presets.get(name).training.phases[len(shared) :]


def test_committed_test_clusters_follow_the_split_rule() -> None:
    """Near-duplicates and pictures of the same person form a cluster, which belongs to one split as a whole."""
    clusters = (RECIPES / "nano_test_clusters.txt").read_text().split()
    assert len(clusters) == len(set(clusters)) > 300
    assert {nano_data.split_of_cluster(cluster) for cluster in clusters} == {"test"}
    shares = [nano_data.split_of_cluster(f"cluster {index}") for index in range(4000)]
    assert shares.count("test") / 4000 == pytest.approx(nano_data.TEST_SHARE, abs=0.02)
    assert shares.count("validation") / 4000 == pytest.approx(nano_data.VALIDATION_SHARE, abs=0.01)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", {"weights.text", "weights.face"}),
        ("no-area", {"losses.text.area_weighted", "losses.face.area_weighted"}),
        ("decoder-only", {"phases.0.trains"}),
        ("text-only", {"weights.face"}),
        ("face-only", {"weights.text"}),
        ("drop-50", {"data.drop_regions"}),
        ("ocr", {"weights.text", "weights.ocr"}),
        ("16k-both", {"tokenizer.quantizer.codebook_size"}),
    ],
)
def test_ablation_run_changes_only_the_expected_settings(name: str, expected: set[str]) -> None:
    configs = nano_ablations.configs()
    found = differences(configs[name], configs["both"])
    assert {min((n for n in expected if d.endswith(n)), default=d) for d in found} == expected


@pytest.mark.parametrize("split", legibility.SPLITS)
def test_unseen_signs_give_the_stated_number_of_prompts(split: PlainSplit) -> None:
    assert len(dict(legibility.prompts_for(legibility.unseen_signs(split, side=32)))) == legibility.PROMPTS


def test_prompts_for_choosing_settings_are_not_evaluated_or_trained_on() -> None:
    chosen = choose_sampling.kept_for_the_choice()
    evaluated = {prompt for prompt, _ in legibility.prompts_for(legibility.unseen_signs("combinations"))}
    trained = {sample.captions[0] for sample in nano_data.plain_signs(500, size=32)}
    assert len(dict(chosen)) == choose_sampling.PROMPTS
    assert not dict(chosen).keys() & (evaluated | trained)
    assert all(prompt.endswith(word) for prompt, word in chosen)


def test_showpiece_is_a_frequent_training_prompt() -> None:
    """It must not be rare: when it was a fifth as frequent as other pairs of word and colour, it was learned last."""
    trained = nano_data.plain_signs(nano_data.PLAIN_SIGNS, size=32)
    captions = Counter(trained[index].captions[0] for index in range(0, len(trained), 8))
    assert captions[legibility.SHOWPIECE] >= statistics.median(captions.values())


@pytest.mark.parametrize(
    ("tables", "runs"),
    [
        (nano_ablations.TABLES, nano_ablations.configs()),
        ((fqgan_nano.COMPONENTS, fqgan_nano.SCALING), fqgan_nano.of_the_paper()),
        ((fqgan_nano.AT_EQUAL_BITS,), fqgan_nano.at_equal_bits()),
        (textok_nano.TABLES, textok_nano.configs()),
    ],
)
def test_table_rows_correspond_to_runs(tables: tuple[ablation.Table, ...], runs: dict[str, RunConfig]) -> None:
    assert {row.run for table in tables for row in table.rows} == runs.keys()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dual", {"losses.disentangle_weight", "losses.representation_weight"}),
        ("dual-dis", {"losses.representation_weight"}),
        ("dual-rep", {"losses.disentangle_weight"}),
        ("dual-long", {"training.phases.0.steps"}),
        ("triple", {"tokenizer.quantizer.codebook_sizes", "losses.representation.targets"}),
    ],
)
def test_factorized_run_changes_only_the_expected_settings(name: str, expected: set[str]) -> None:
    configs = fqgan_nano.of_the_paper()
    assert differences(configs[name], configs["dual-dis-rep"]) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("baseline-2", {"tokenizer.text"}),
        ("textok-8", {"tokenizer.num_latent_tokens"}),
        ("cross-attention", {"tokenizer.text.how"}),
        ("encoder", {"tokenizer.text.where"}),
        ("class", {"tokenizer.text.encoder", "tokenizer.text.dim", "tokenizer.text.classes"}),
        ("class-text", {"tokenizer.text.template"}),
        ("vq-textok-2", {"tokenizer.quantizer"}),
    ],
)
def test_text_conditioned_run_changes_only_the_expected_settings(name: str, expected: set[str]) -> None:
    configs = textok_nano.configs()
    found = differences(configs[name], configs["textok-2"])
    assert {min((n for n in expected if d.startswith(n)), default=d) for d in found} == expected


def test_textok_runs_of_most_token_counts_are_repeated() -> None:
    configs = textok_nano.configs()
    assert configs.keys() >= textok_nano.REPEATED
    assert {configs[name].tokenizer.num_latent_tokens for name in textok_nano.REPEATED} == {2, 8, 16, 32}


def test_wrong_caption_controls_use_the_finished_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: set[Path] = set()

    def run(config: RunConfig, shards: Path, out: Path, start: Path | None) -> Path:
        done.add(out)
        return out

    controlled: list[Path] = []
    monkeypatch.setattr(ablation, "run", run)
    monkeypatch.setattr(ablation, "load_networks", lambda *_: ({}, {}))
    monkeypatch.setattr(ablation, "test_sets", lambda shards: [])
    monkeypatch.setattr(ablation, "evaluate", lambda *_, **__: SimpleNamespace(tokenizers={}))
    monkeypatch.setattr(textok_nano, "controls", lambda trained, *_: controlled.extend(trained))
    monkeypatch.setattr(textok_nano, "draw", lambda *_: None)
    textok_nano.show(textok_nano.configs(), tmp_path, tmp_path, (0, 1))
    assert len(controlled) == len(textok_nano.TOKENS) + 4  # four of them with two seeds
    assert set(controlled) <= done


def test_codebook_sizes_of_the_paper_runs_and_12_bits_at_equal_bits() -> None:
    configs = fqgan_nano.of_the_paper()
    sizes = {name: build(configs[name].tokenizer).codebook_sizes for name in ("vq-4096", "dual", "triple")}
    assert sizes == {"vq-4096": (4096,), "dual": (2048, 2048), "triple": (2048,) * 3}
    assert differences(configs["vq-2048"], configs["vq-4096"]) == {"tokenizer.quantizer.codebook_size"}
    equal = fqgan_nano.at_equal_bits()
    assert {build(config.tokenizer).bits_per_token for config in equal.values()} == {12.0}
    for name in fqgan_nano.EQUAL_BITS:
        assert differences(equal[name], equal[f"{name}-insight"]) == {
            "training.phases.0.weights.text",
            "training.phases.0.weights.face",
        }


def test_every_queued_run_builds_with_the_expected_heads() -> None:
    queues = (nano_ablations.configs(), fqgan_nano.of_the_paper(), fqgan_nano.at_equal_bits(), textok_nano.configs())
    heads = {name: len(TokenizerTask(config).heads) for configs in queues for name, config in configs.items()}
    assert {name for name, count in heads.items() if count} == {
        *("dual-rep", "dual-dis-rep", "dual-long", "triple", "triple-long")
    }


def test_equal_bits_runs_start_from_the_pretrained_blocks(tmp_path: Path) -> None:
    config = fqgan_nano.at_equal_bits()["2-codebooks"]
    initial = RunFolder(fqgan_nano.with_pretrained_blocks(config, 0, tmp_path / "start")).read_model()
    pretrained = RunFolder(fqgan_nano.PRETRAINED).read_model()
    same = {name for name, tensor in initial.items() if name in pretrained and torch.equal(tensor, pretrained[name])}
    fresh = {".".join(name.split(".")[:2]) for name in initial.keys() - same}
    assert fresh == {"encoder.branches", "quantizer.branches", "decoder.from_latents"}


def test_table_shows_every_seed_and_the_paper_values() -> None:
    columns = (
        ablation.Column("T", "text_accuracy", ("signs",), "{:.1%}", "P"),
        ablation.Column("U", "usage", ("signs",)),
    )
    rows = (ablation.Row("a", "first", {"P": "30", "U": "9"}), ablation.Row("b", "not done"))
    columns += (ablation.Column("V", "psnr", ("a set that is not there",)),)
    others = {"usage_0": Score(value=0.5), "usage_1": Score(value=1.0), "usage_of_all": Score(value=9.0)}
    results = [
        Result(tokenizer=name, data="signs", is_check=False, metrics={"text_accuracy": Score(value=value), **others})
        for name, value in (("a-seed-0", 0.123), ("a-seed-1", 0.2))
    ]
    found = Evaluation(
        tokenizers={result.tokenizer: {} for result in results},
        sets=[],
        results=results,
        comparisons=[],
        preprocessing="",
        examples=[],
    )
    assert ablation.Table("Title", columns, rows).markdown(found, (0, 1)).splitlines() == [
        "**Title**",
        "",
        "|  | T, signs | U, signs | V, a set that is not there | paper: P | paper: U |",
        "| --- | --- | --- | --- | --- | --- |",
        "| first | 12.3% / 20.0% | 0.75 / 0.75 |  | 30 | 9 |",
    ]


@pytest.mark.parametrize(
    "table", [*nano_ablations.TABLES, fqgan_nano.COMPONENTS, fqgan_nano.SCALING, *textok_nano.TABLES]
)
def test_tables_show_all_paper_values_and_avoid_paper_metric_names(table: ablation.Table) -> None:
    names = {column.of_paper or column.name for column in table.columns}
    assert {name for row in table.rows for name in row.paper} <= names
    assert not {column.name for column in table.columns} & {"rFID", "FID", "T-ACC", "T-NED", "F-Sim", "LPIPS"}


def test_branch_probes_score_informative_features_above_random_ones(needs) -> None:
    rng = np.random.default_rng(0)
    labels = [name for name in ("cat", "dog", "sign") for _ in range(20)]
    informative = np.repeat(np.eye(3), 20, axis=0) + 0.01 * rng.normal(size=(60, 3))
    random = rng.normal(size=(60, 3))
    assert branches.same_class_neighbours(informative, labels) == (1.0, pytest.approx(19 / 59))
    assert branches.same_class_neighbours(np.zeros((2, 3)), ["cat", "dog"]) == (0.0, 0.0)
    assert branches.same_class_neighbours(random, labels)[0] < 0.7
    needs("text_encoder/minilm")
    captions = [f"{name} {index}" for index, name in enumerate(("a black cat", "a red bus", "the sea") * 20)]
    with torch.no_grad():
        vectors = needs("text_encoder/minilm").embed_text(captions).numpy()
    assert branches.caption_probe(vectors, captions, first=1) == (1.0, pytest.approx(1 / 15))
    assert branches.caption_probe(rng.normal(size=(60, 3)), captions, first=1)[0] < 0.4
    repeated = [f"a photo of a {name}" for name in labels]
    assert branches.caption_probe(informative, repeated, first=1) == (1.0, pytest.approx(1 / 3))
    assert branches.caption_probe(random, repeated, first=1)[0] < 0.8
    assert branches.caption_probe(random, repeated, first=3) == (1.0, 1.0)


@pytest.mark.slow
def test_nano_recipe_runs_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs) -> None:
    """From raw pictures to two evaluated tokenizers, with two steps per phase where the recipe takes thousands."""
    for network in (
        *("text_detector/ppocrv6", "face_detector/mtcnn", "text_features/ppocrv6", "face_features/mobilefacenet"),
        *("text_judge/easyocr", "face_judge/dlib", "perceptual/vgg16", "vision/efficientnet_lite0"),
    ):
        needs(network)
    get = presets.get

    def few_steps(name: str) -> RunConfig:
        config = get(name)
        training = dataclasses.replace(
            config.training, steps=2 * len(config.training.phases), global_batch_size=2, evaluation_pictures=2
        )
        return dataclasses.replace(config, training=training)

    monkeypatch.setattr(presets, "get", few_steps)
    monkeypatch.setattr(nano_data, "SIGNS", 6)
    monkeypatch.setattr(nano_data, "TEST_SIGNS", 3)
    monkeypatch.setattr(nano_data, "split_of", lambda sample: ("train", "validation", "test")[len(sample.path) % 3])
    pictures = {"text": data.page()[:100, :200], "faces": data.astronaut()[:256, 100:356], "plain": data.coffee()}
    for kind, picture in pictures.items():
        (tmp_path / kind).mkdir()
        for name in ("a", "bb", "ccc"):
            Image.fromarray(picture).resize((288, 288)).save(tmp_path / kind / f"{name}.png")
    text, faces, plain = (str(tmp_path / kind) for kind in pictures)
    nano.main((text,), (faces,), (plain,), tmp_path / "out")
    twins = [tmp_path / "out" / "shipped" / name for name in nano.TWINS]
    assert all((twin / "model.safetensors").exists() for twin in twins)
    assert (tmp_path / "out/scores/report.html").exists()
    assert len(open_dataset(str(tmp_path / "out/shards/test/faces"))[0].faces or []) == 1
    codebooks = [np.asarray(nano.RunFolder(twin).read_model()["quantizer.codebook"]) for twin in twins]
    assert not np.array_equal(*codebooks)


def test_kinds_of_words():
    assert kinds_of("STOP") == {"street"}
    assert kinds_of("HILL") == {"nature", "name"}  # in both vocabularies
    assert kinds_of("T1GER") == {"animal"}
    assert [kinds_of(text) for text in ("£4.50", "7:05", "812", "KX7")] == [{"price"}, {"time"}, {"number"}, {"plate"}]
    assert kinds_of("") == kinds_of("###") == set()


def test_signs_are_rendered_once(tmp_path, monkeypatch):
    monkeypatch.setattr(signs, "HELD_OUT", 3)
    monkeypatch.setattr(
        PlainSigns, "read", lambda *arguments, read=PlainSigns.read: rendered.append(1) or read(*arguments)
    )
    rendered: list[int] = []
    for _ in range(2):
        signs.render(tmp_path, 64, 5)
    assert len(rendered) == 8
    assert len(ShardReader(str(tmp_path / "train"))) == 5
    assert len(ShardReader(str(tmp_path / "held-out"))) == 3


def test_held_out_signs_of_the_training_split_are_other_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(signs, "HELD_OUT", 5)
    signs.render(tmp_path, 64, 5, held_out="train")
    train, held_out = ({sign.image for sign in open_dataset(tmp_path / name)} for name in ("train", "held-out"))
    assert len(train) == len(held_out) == 5
    assert not train & held_out


def test_samples_have_held_out_classes_and_distance_shows_quarters(tmp_path, monkeypatch):
    with ShardWriter(str(tmp_path / "held-out")) as writer:
        for sign in PlainSigns(12, size=32, split="combinations"):
            writer.write(sign)
    labels, requested = [sign.label for sign in open_dataset(tmp_path / "held-out")], []
    assert len(set(labels)) < 12

    def measure(pictures: Path, out: Path, reference: Path, metrics: list[str]) -> SimpleNamespace:
        assert (pictures.name, reference.name) == ("run-samples", "held-out")
        return SimpleNamespace(failed={}, metrics={metrics[0]: Score(value=8.04, parts=[9.5, 11.0, 10.0, 9.0])})

    monkeypatch.setattr(signs, "generate", lambda run, out, labels, prompts: requested.extend(labels))
    monkeypatch.setattr(signs, "evaluate_generated", measure)
    samples = signs.samples_of(tmp_path / "run", signs.held_out_classes(tmp_path))
    score = signs.distance(samples, tmp_path / "held-out")
    assert (requested, signs.show(score)) == (labels, "8.0 (quarters 9.0 to 11.0)")


def test_with_photographs_adds_captioned_photographs_to_signs(tmp_path, monkeypatch):
    sign, *others = list(PlainSigns(2, size=32))
    photo = dataclasses.replace(others[0], path="sea.png", label=None, captions=["the sea", "waves"], source=None)
    uncaptioned = dataclasses.replace(photo, path="silent.png", captions=[])
    for folder, samples in (
        *((f"signs/{split}", [sign]) for split in ("train", "held-out")),
        *((f"shards/{split}", [photo, others[0], uncaptioned]) for split in ("train", "validation")),
    ):
        with ShardWriter(str(tmp_path / folder)) as writer:
            for sample in samples:
                writer.write(sample)
    embedded = []
    monkeypatch.setattr(signs, "embed", lambda *rest: embedded.append(rest))
    text = textok_nano.text_config_of(presets.get("textok-nano"))
    out = signs.with_photographs(tmp_path / "signs", tmp_path / "shards", text, tmp_path / "both")
    for split in ("train", "held-out"):
        found = [(sample.label, sample.captions) for sample in open_dataset(out / split)]
        assert found == [(sign.label, sign.captions), (None, ["the sea"])]
    assert embedded == [(str(out / split), text.encoder, text.max_tokens) for split in ("train", "held-out")]
    shutil.copy(tmp_path / "shards/train/data-00000.parquet", tmp_path / "shards/train/data-00001.parquet")
    with pytest.raises(SystemExit, match="holds photographs of other shards"):
        signs.with_photographs(tmp_path / "signs", tmp_path / "shards", text, tmp_path / "both")


def test_scores_of_signs_are_grouped_by_word(tmp_path, monkeypatch):
    """Pictures of the same word form one bootstrap group, and scores are assigned to pictures by path."""

    def measure(pictures, out, **settings):
        lines = [("00002.png", "OPEN", 1.0), ("00000.png", "OPEN", 0.5), ("00001.png", "CAT", 0.0)]
        rows = [
            {"path": path, "text": text, "ned": ned, "found": [ned == 1], "found_alnum": [ned > 0]}
            for path, text, ned in lines
        ]
        (out / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return SimpleNamespace(failed={})

    monkeypatch.setattr(legibility, "evaluate_generated", measure)
    found = legibility.read_signs(tmp_path / "pictures", ["OPEN", "CAT", "OPEN"])
    assert found["rendered_text_ned"].values.tolist() == [0.5, 0.0, 1.0]
    assert found["rendered_text_ned"].groups.tolist() == [0, 1, 0]
    assert found["rendered_word_accuracy"].values.tolist() == [0.0, 0.0, 1.0]
    assert found["rendered_word_accuracy_alnum"].values.tolist() == [1.0, 0.0, 1.0]


@pytest.fixture
def tiny_recipes(monkeypatch, needs):
    """Reduce the recipes to few signs, prompts and steps, and the smallest generators."""
    for network in ("text_detector/ppocrv6", "text_judge/easyocr", "vision/efficientnet_lite0", "text_encoder/minilm"):
        needs(network)
    for module, name, value in (
        (insightar_nano, "MANY_SIGNS", 40),
        (far_nano, "SIGNS", 1200),  # enough to show every word
        (dit_nano, "PLAIN_SIGNS", 40),
        (signs, "HELD_OUT", 30),
        (signs, "UNSEEN", 1),
        (textok_nano, "STEPS", 2),
        (textok_nano, "PLAIN_SIGNS", 40),
        (textok_nano, "TEST_SIGNS", 12),
        (fqgan_nano, "STEPS", 2),
        (fqgan_nano, "EQUAL_BITS_STEPS", 2),
        (nano_data, "split_of", lambda sample: ("train", "validation", "test")[len(sample.path) % 3]),
        (dit_nano, "FIGURE", dict.fromkeys(dit_nano.FIGURE, (2, 2))),
        (dit_nano, "GRID_STEPS", 2),
        (dit_nano, "FIGURE_SAMPLES", 12),
        (dit_nano, "FIGURE_INFERENCE_STEPS", (2, 4)),
        (dit_nano, "TIMED", 1),
        (far_nano, "STEPS", 2),
        (legibility, "PROMPTS", 3),
        (legibility, "SHOWPIECE_SEEDS", 2),
    ):
        monkeypatch.setattr(module, name, value)
    get, get_generator = presets.get, presets.get_generator

    def short(training: TrainingConfig) -> TrainingConfig:
        steps = 2 * len(training.phases)
        return dataclasses.replace(training, steps=steps, global_batch_size=2, evaluation_pictures=2)

    def tokenizer(name: str) -> RunConfig:
        config = get(name)
        return dataclasses.replace(config, training=short(config.training))

    def generator(name: str) -> GeneratorRunConfig:
        config = get_generator(name)
        debug = get_generator(f"{name.partition('-')[0]}-debug")
        shape = dataclasses.replace(debug.generator, text=config.generator.text) if "t2i" in name else debug.generator
        return dataclasses.replace(debug, generator=shape, training=short(debug.training))

    monkeypatch.setattr(presets, "get", tokenizer)
    monkeypatch.setattr(presets, "get_generator", generator)


def untrained(folder: Path, config: RunConfig) -> Path:
    """Write and return a run folder of an untrained tokenizer."""
    run = RunFolder(folder)
    run.write_config(to_dict(config))
    run.write_model(build(config.tokenizer).weights())
    run.metrics_file.touch()
    return folder


@pytest.mark.slow
def test_insightar_nano_recipe_runs_end_to_end(tmp_path, monkeypatch, tiny_recipes):
    twins = {name: untrained(tmp_path / name, presets.get("insighttok-debug")) for name in insightar_nano.TWINS}
    for module, name in ((insightar_nano, "encode"), (legibility, "open_reconstructor")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda twin, *rest, real=real: real(str(twins[twin]), *rest))
    for _ in range(2):  # all results exist the second time
        insightar_nano.main(tmp_path / "out")
    lines = (tmp_path / "out/table-0.md").read_text().splitlines()
    assert sum("generated" in line and "combinations" in line for line in lines) == 3  # both, and their difference
    assert lines[-1].endswith("of 2 seeds")
    for name in insightar_nano.TWINS.values():
        assert (tmp_path / "out/shipped-0" / name / "tokenizer/model.safetensors").exists()


@pytest.mark.slow
def test_far_nano_recipe_runs_end_to_end(tmp_path, tiny_recipes, capsys):
    dual = untrained(tmp_path / "dual", presets.get("fqgan-debug"))
    for seed in (0, 1):  # both in one folder
        far_nano.main(tmp_path / "out", tokenizer=str(dual), seed=seed)
        heads, _, readings = (tmp_path / f"out/table-{seed}.md").read_text().partition("\n\n")
        rows = [[line.split("|")[1].strip() for line in part.splitlines()[2:]] for part in (heads, readings)]
        assert rows == [["factorized", "linear", "mlp", "far-nano"], ["generated", "reconstructed", "rendered"]]
    kinds, words = (TokenShards(tmp_path / f"out/dual/{name}/train") for name in ("codes", "codes-by-word"))
    assert kinds.labels() == sorted(nano_data.SIGN_LABELS)
    for index in range(30):
        assert words[index].captions[0].endswith(f" says {words[index].label}")
        assert (words[index].values == kinds[index].values).all()
    capsys.readouterr()
    choose_sampling.main(str(tmp_path / "out/far-nano-0"), tmp_path / "tried", (1.0, 2.0), temperature=(0.5,))
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows[1:] == [[" 1 ", " 0.5 "], [" 2 ", " 0.5 "]]
    table = (tmp_path / "tried/guidance_scale-1-temperature-0.5-scores/words.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in table] == sorted(words.labels())[::2]


def test_timed_calls_use_distinct_captions(monkeypatch) -> None:
    """A text encoder would encode equal captions only once, and the timings of the other calls would be too short."""
    seeds = []
    pipeline = SimpleNamespace(
        generate=lambda labels, seed=0, **sampling: seeds.extend(range(seed, seed + len(labels)))
    )
    monkeypatch.setattr(dit_nano, "load", lambda name: pipeline)
    dit_nano.timed({"textok-8": Path("a")})
    num_calls = 1 + dit_nano.ROUNDS * len(dit_nano.FIGURE_INFERENCE_STEPS)  # one untimed warm-up call
    assert len(seeds) == len(set(seeds)) == num_calls * dit_nano.TIMED


def test_speed_is_compared_at_equal_quality() -> None:
    seconds = {("few", 5): 1.0, ("few", 10): 2.0, ("kl-nano", 5): 20.0, ("kl-nano", 10): 40.0}
    seconds |= {("kl-nano-f2", 5): 100.0, ("kl-nano-f2", 10): 200.0}
    values = {("few", 5): 60.0, ("few", 10): 50.0, ("kl-nano", 5): 55.0, ("kl-nano", 10): 52.0}
    values |= {("kl-nano-f2", 5): 49.0, ("kl-nano-f2", 10): 51.0}
    distances = {key: Score(value=value, parts=[value, value + 0.5]) for key, value in values.items()}
    assert dit_nano.at_equal_quality(seconds, distances, ["few"]) == [
        "- few in 10 steps (50.0): 20.0 times as fast as kl-nano in 10 steps (52.0)",
        "- few: in no number of steps as near as kl-nano-f2 in 5 steps (49.0)",
    ]
    # one of its quarters is nearer than one of the quarters of the grid's nearest
    distances["few", 5] = Score(value=60.0, parts=[52.2, 70.0])
    (line, _) = dit_nano.at_equal_quality(seconds, distances, ["few"])
    assert line == "- few in 5 steps (60.0): 40.0 times as fast as kl-nano in 10 steps (52.0)"
    distances["kl-nano", 5] = Score(value=55.0, parts=[52.2, 58.0])  # likewise for the grid, at its faster setting
    (line, _) = dit_nano.at_equal_quality(seconds, distances, ["few"])
    assert line == "- few in 5 steps (60.0): 20.0 times as fast as kl-nano in 5 steps (55.0)"


def test_autoencoder_with_only_a_config_gets_random_weights(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_config(tmp_path / "vae")
    ((name, found),) = dit_nano.with_weights(tmp_path / "vae", tmp_path / "out").items()
    assert name == dit_nano.UNTRAINED
    assert load_tokenizer(str(found)).config.model == "AutoencoderKL"
    assert dit_nano.with_weights(found, tmp_path / "other") == {dit_nano.VAE: found}
    shutil.copytree(found, tmp_path / "pipeline/vae")
    assert dit_nano.with_weights(tmp_path / "pipeline", tmp_path / "other") == {dit_nano.VAE: tmp_path / "pipeline/vae"}
    (tmp_path / "vae/diffusion_pytorch_model.bin").touch()
    with pytest.raises(SystemExit, match=r"has diffusion_pytorch_model\.bin, and weights"):
        dit_nano.with_weights(tmp_path / "vae", tmp_path / "out")


@pytest.mark.slow
def test_dit_nano_recipe_runs_end_to_end(tmp_path, monkeypatch, tiny_recipes):
    textok, folders = tmp_path / "textok", {}
    for name in ("textok-8", "textok-16", "textok-32"):
        config = textok_nano.short("textok", int(name.partition("-")[2]))
        folders[name] = untrained(textok / f"{name}-seed-0", config)
    for name in dit_nano.PAIR:
        folders[name] = untrained(tmp_path / name, presets.get(name))
    signs.render(textok / "shards", 64, 40)
    (textok / "shards/held-out").rename(textok / "shards/validation")
    with ShardWriter(str(textok / "shards/train"), first_shard=1) as writer:
        photo = next(iter(PlainSigns(1, size=64)))
        writer.write(dataclasses.replace(photo, label=None, captions=["the sea"]))
    real = dit_nano.open_tokenizer
    monkeypatch.setattr(dit_nano, "locate", lambda name: folders[name])
    monkeypatch.setattr(dit_nano, "open_tokenizer", lambda name, *rest: folders.get(name) or real(name, *rest))
    dit_nano.main(textok, tmp_path / "out")
    text = "\n".join((tmp_path / f"out/{part}-0.md").read_text() for part in ("table-3", "dit-nano", "figure-4"))
    for name, tokens in zip(dit_nano.FIGURE, (8, 16, 32, 256, 1024), strict=True):
        assert text.count(f"| {name} | {tokens} |") == 2
    assert text.count("latents of another prompt | words") == 2
    assert "rendered ones: " in text
    assert "| baseline-nano | " in text
    assert sum(line.startswith("- textok-") for line in text.splitlines()) == 3 * len(dit_nano.GRIDS)
    assert "FID 2.82 and CLIP score 29.23" in text
    reference = json.loads((tmp_path / "out/shipped-0/dit-nano-samples-scores/metrics.json").read_text())["reference"]
    assert (reference["name"], reference["pictures"]) == (str(tmp_path / "out/reconstructed"), signs.HELD_OUT)
    assert (tmp_path / "out/shipped-0/dit-nano/unseen_captions").is_dir()


@pytest.fixture
def captioned(tmp_path: Path) -> str:
    """Photographs of two classes with captions, three of each split."""
    (tmp_path / "captioned").mkdir()
    rows = []
    for index, picture in enumerate((data.astronaut(), data.coffee(), data.chelsea())):
        for split in ("a", "bb", "ccc"):
            file = f"{index}{split}.png"
            Image.fromarray(picture).resize((96, 96)).save(tmp_path / "captioned" / file)
            rows.append({"file": file, "caption": f"{split}, the {index}th of all", "label": f"class {index % 2}"})
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "captioned/captions.jsonl").write_text("\n".join(lines) + "\n")
    return str(tmp_path / "captioned")


def test_shipped_fqgan_continues_from_its_first_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, shipped = [], []

    def run(config, shards: Path, out: Path, start: Path) -> Path:
        rounds.append((config.training.seed, start, out))
        return out

    monkeypatch.setattr(fqgan_nano, "run", run)
    monkeypatch.setattr(fqgan_nano, "ship", lambda trained, out: shipped.append(trained))
    fqgan_nano.main((), tmp_path, data=tmp_path / "nano", only=("fqgan-dual-nano",))
    (first_seed, first_start, first_out), (second_seed, second_start, second_out) = rounds
    assert (first_seed, second_seed) == (0, 1)
    assert RunFolder(first_start).read_model().keys() == presets.create_tokenizer("fqgan-dual-nano").weights().keys()
    assert second_start == first_out
    assert shipped == [second_out]


@pytest.mark.slow
def test_fqgan_nano_and_branches_recipes_run_end_to_end(tmp_path: Path, tiny_recipes, captioned: str) -> None:
    out = tmp_path / "out"
    for _ in range(2):  # all results exist the second time
        fqgan_nano.main((captioned,), out, seeds=(0, 1), only=("vq-2048", "dual-dis-rep"))
    table = (out / "paper/tables.md").read_text()
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row.strip("- ")] == [
        "VQ 2,048 (paper: 16,384)",
        "… with both",
        "2,048 x 2",
    ]
    assert table.count(" / ") >= 3 * 3  # two seeds
    first, second = (load_tensors(out / f"starts/dual-dis-rep-seed-{seed}/model.safetensors") for seed in (0, 1))
    assert torch.equal(first["encoder.conv_in.weight"], second["encoder.conv_in.weight"])  # from the pretraining
    name = "quantizer.branches.0.codebook"
    assert not torch.equal(first[name], second[name])
    branches.main(str(out / "paper/dual-dis-rep-seed-0"), (captioned,), tmp_path / "drawn", size=64)
    assert (tmp_path / "drawn/classes.png").stat().st_size > 0


@pytest.mark.slow
def test_textok_nano_recipe_runs_end_to_end(tmp_path: Path, tiny_recipes, captioned: str) -> None:
    out = tmp_path / "out"
    rows = Path(captioned, "captions.jsonl").read_text().splitlines()
    unlabelled = [{k: v for k, v in json.loads(row).items() if k != "label"} for row in rows]
    Path(captioned, "captions.jsonl").write_text("\n".join(map(json.dumps, unlabelled)) + "\n")
    names = ("baseline-8", "textok-8", "class", "vq-textok-8", "textok-nano")
    for _ in range(2):
        textok_nano.main((captioned,), out, only=names)
    assert {folder.name for folder in out.glob("*-seed-1")} == {"baseline-8-seed-1", "textok-8-seed-1"}
    table = (out / "tables.md").read_text()
    assert "8 tokens, with (paper: 128)" in table
    assert "class category" in table
    assert (out / "controls.md").read_text().count("| textok-8-seed-1 |") >= 2
    assert (out / "tokens.png").stat().st_size > 0
    assert (out / "shipped/textok-nano/model.safetensors").exists()
