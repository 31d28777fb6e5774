"""Train `fqgan-dual-nano`, reproduce FQGAN's Tables 3 and 5 in miniature, and compare codebooks at equal bits.

    python recipes/fqgan_nano.py --data FOLDER_OF_nano.py --plain PICTURES… --out FOLDER

The runs form one queue, which can be stopped at any moment and resumes where it was; finished runs are left alone. All
runs start from the encoder and decoder of recipes/nano_pretraining, with fresh adapters and codebooks: training from
scratch for ten minutes on a laptop's CPU is too short to show any difference.

The runs of Tables 3 and 5 are trained on pictures of 64 px with captions (from a table, or from their class): the
second branch learns to predict MiniLM's embedding of the caption. The Fréchet distance is computed on the features of
EfficientNet-Lite0, which is not a target of any loss here. As in the paper, the factorized tokenizers have an adapter
for each branch and the VQGAN has none; an additional row, a single codebook behind an adapter, separates the effect of
the adapter from that of factorization.

The runs at equal bits need the shards of nano.py, with their words and faces; InsightTok's losses are on in half of
them. Each additional codebook there comes with an adapter; the disentanglement loss is off. The tokenizer that imtok
ships is trained last, on the same shards, in two rounds.

The paper's columns are printed next to ours. They are of another model at another scale, trained with perceptual and
adversarial losses that are not used here, so only the order of the rows can be compared.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: docs/training.md

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from ablation import Column, Row, Table, carry_out, check_names, name_of, only_these, seeded
from nano import run, ship
from nano_data import prepare

from imtok import presets
from imtok.checkpoints import RunFolder
from imtok.config import to_dict
from imtok.data.shards import ShardReader
from imtok.tokenizers.catalog import build, load
from imtok.tokenizers.quantizers import VQConfig
from imtok.training.run import Phase, RunConfig

STEPS = 400
"""Training steps of a run of Tables 3 and 5; the longer schedule has twice as many."""
EQUAL_BITS_STEPS = 280
"""Training steps of a run at equal bits, whose pictures have four times as many pixels."""
BATCH = 8
"""Small, for some hundred steps in twenty minutes of one core; a contrastive loss then has seven negatives."""
SHIPPED = "fqgan-dual-nano"
ROUNDS = 2
"""Rounds of the shipped run: each continues from the weights of the last, with a new schedule and other pictures."""
PRETRAINED = Path(__file__).parent / "nano_pretraining"
EQUAL_BITS = {"1-codebook": (4096,), "2-codebooks": (64, 64), "3-codebooks": (16, 16, 16)}

FRECHET = Column("Fréchet distance", "fd_efficientnet_lite0", ("plain",), of_paper="rFID")
"""Deviation: a Fréchet distance on other features than the paper's."""
PSNR = Column("PSNR", "psnr", ("plain",))
VGG16 = Column("VGG16 distance", "vgg16_distance", ("plain",), "{:.3f}")
USAGE = Column("Usage", "codebook_usage", ("plain",), "{:.0%}")
"""Share of the codes that occur in the test set, whose tokens are too few for 100 % with a codebook of 4,096."""

COMPONENTS = Table(
    "Table 3: components",
    (FRECHET, PSNR, VGG16, USAGE),
    (
        Row("vq-2048", "VQ 2,048 (paper: 16,384)", {"rFID": "3.71", "PSNR": "20.56", "Usage": "98%"}),
        Row("vq-4096", "VQ 4,096 (paper: 32,768)", {"rFID": "3.60", "PSNR": "20.56", "Usage": "84%"}),
        Row("vq-4096-adapter", "VQ 4,096 behind an adapter"),
        Row("dual", "2,048 x 2 (paper: 16,384 x 2)", {"rFID": "2.00", "PSNR": "22.21", "Usage": "97%"}),
        Row("dual-dis", "… with disentanglement", {"rFID": "1.84", "PSNR": "22.04", "Usage": "98%"}),
        Row("dual-rep", "… with representation learning", {"rFID": "1.73", "PSNR": "21.61", "Usage": "98%"}),
        Row("dual-dis-rep", "… with both", {"rFID": "1.66", "PSNR": "21.62", "Usage": "98%"}),
    ),
)
SCALING = Table(
    "Table 5: more codebooks, longer schedule (paper: 10 and 20 epochs)",
    (FRECHET, PSNR, VGG16, USAGE),
    (
        Row("dual-dis-rep", "2,048 x 2", {"rFID": "1.66", "PSNR": "21.62"}),
        Row("dual-long", "2,048 x 2, twice the steps", {"rFID": "1.25", "PSNR": "22.00"}),
        Row("triple", "2,048 x 3", {"rFID": "1.30", "PSNR": "21.85"}),
        Row("triple-long", "2,048 x 3, twice the steps", {"rFID": ".92", "PSNR": "22.67"}),
    ),
)
AT_EQUAL_BITS = Table(
    "Twelve bits a token, without and with the text and face losses",
    (
        Column("Text accuracy", "text_accuracy", ("signs", "words"), "{:.1%}"),
        Column("Edit similarity", "text_ned", ("signs", "words"), "{:.1%}"),
        Column("Face similarity", "face_similarity", ("faces",), "{:.4f}"),
        PSNR,
        USAGE,
    ),
    tuple(
        Row(f"{name}{suffix}", f"{' x '.join(f'{size:,}' for size in sizes)}{label}")
        for suffix, label in (("", ""), ("-insight", ", with"))
        for name, sizes in EQUAL_BITS.items()
    ),
)


def main(
    plain: tuple[str, ...],
    out: Path,
    data: Path | None = None,
    seeds: tuple[int, ...] = (0, 1),
    only: tuple[str, ...] = (),
) -> None:
    """Run the queue, evaluate, and print the tables.

    Args:
        plain: sources of pictures with captions or classes.
        out: folder for the runs.
        data: working folder of recipes/nano.py; without it the runs at equal bits and the shipped run are left out.
        seeds: each run of Tables 3 and 5 is done once with every seed.
        only: names of the runs to do; by default all.
    """
    check_names(only, [*of_the_paper(), *((*at_equal_bits(), SHIPPED) if data is not None else ())])
    if runs := only_these(of_the_paper(), only):
        shards = prepare((), (), plain, out, next(iter(runs.values())).data.crop)
        captioned = sum(bool(sample.captions) for sample in ShardReader(str(shards / "train")).annotations())
        if not captioned:
            raise SystemExit("none of the pictures has a caption or a class: representation learning wants some")
        print(f"{captioned} of the training pictures have captions")
        carry_out(runs, starts(runs, out / "starts"), (COMPONENTS, SCALING), shards, out / "paper", seeds)
    if data is not None and (runs := only_these(at_equal_bits(), only)):
        start = starts(runs, out / "starts")
        carry_out(runs, start, (AT_EQUAL_BITS,), data / "shards", out / "equal-bits", seeds[:1])
    if data is not None and (not only or SHIPPED in only):
        config = presets.get(f"{SHIPPED}-finetune")
        trained = with_pretrained_blocks(config, 0, out / "starts" / SHIPPED)
        for seed in range(ROUNDS):
            trained = run(seeded(config, seed), data / "shards", out / name_of(SHIPPED, seed), trained)
        ship(trained, out / "shipped" / SHIPPED)


def of_the_paper() -> dict[str, RunConfig]:
    """Return the configs of the runs of Tables 3 and 5 by name."""
    dual, triple = small("fqgan-dual-nano"), small("fqgan-triple-nano")
    long = Phase(name="train", steps=2 * STEPS)
    no_disentangling, no_representation = {"disentangle_weight": 0.0}, {"representation_weight": 0.0}
    runs = {
        "vq-2048": single(2048),
        "vq-4096": single(4096),
        "vq-4096-adapter": weighed(codebooks(dual, (4096,)), **no_disentangling, **no_representation),
        "dual": weighed(dual, **no_disentangling, **no_representation),
        "dual-dis": weighed(dual, **no_representation),
        "dual-rep": weighed(dual, **no_disentangling),
        "dual-dis-rep": dual,
        "dual-long": scheduled(dual, long),
        "triple": triple,
        "triple-long": scheduled(triple, long),
    }
    return {name: dataclasses.replace(config, name=f"fqgan-{name}") for name, config in runs.items()}


def small(preset: str) -> RunConfig:
    """Return a preset's config for random crops of 64 px, without zooming in on words and faces."""
    base = presets.get(preset)
    crop = dataclasses.replace(base.data.crop, resolution=64, word_height=None, face_size=None)
    data = dataclasses.replace(base.data, crop=crop)
    return scheduled(dataclasses.replace(base, data=data), Phase(name="train", steps=STEPS))


def single(codes: int) -> RunConfig:
    """Return the config of the VQGAN: one codebook of the same kind, no adapter, and neither of FQGAN's two losses."""
    base = small("fqgan-dual-nano")
    tokenizer = dataclasses.replace(
        base.tokenizer, quantizer=VQConfig(codebook_size=codes, codebook_dim=8), adapter=None
    )
    return weighed(dataclasses.replace(base, tokenizer=tokenizer), disentangle_weight=0.0, representation_weight=0.0)


def at_equal_bits() -> dict[str, RunConfig]:
    """Return configs of one, two or three codebooks with twelve bits in total, without and with InsightTok's losses."""
    insight = presets.get("insighttok-nano-finetune").training.phases[0]
    runs = {}
    for name, sizes in EQUAL_BITS.items():
        base = codebooks(presets.get("fqgan-dual-nano"), sizes)
        plain = weighed(base, representation_weight=0.0, disentangle_weight=0.0)
        for suffix, weights in (("", {}), ("-insight", insight.weights)):
            phase = Phase(name="train", steps=EQUAL_BITS_STEPS, weights=weights, region_share=insight.region_share)
            runs[f"{name}{suffix}"] = dataclasses.replace(scheduled(plain, phase), name=f"fqgan-{name}{suffix}")
    return runs


def codebooks(config: RunConfig, sizes: tuple[int, ...]) -> RunConfig:
    """Return the config with sub-codebooks of other sizes, each behind its own adapter."""
    quantizer = dataclasses.replace(config.tokenizer.quantizer, codebook_sizes=sizes)
    return dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, quantizer=quantizer))


def weighed(config: RunConfig, **weights: float) -> RunConfig:
    """Return the config with other loss weights."""
    return dataclasses.replace(config, losses=dataclasses.replace(config.losses, **weights))


def scheduled(config: RunConfig, phase: Phase) -> RunConfig:
    """Return the config with this phase only, in small batches."""
    training = dataclasses.replace(config.training, phases=(phase,), global_batch_size=BATCH)
    return dataclasses.replace(config, training=training)


def starts(runs: dict[str, RunConfig], out: Path) -> Callable[[str, int], Path]:
    """Return a function that prepares the initial weights of a run, by its name and seed."""

    def start(name: str, seed: int) -> Path:
        return with_pretrained_blocks(runs[name], seed, out / name_of(name, seed))

    return start


def with_pretrained_blocks(config: RunConfig, seed: int, out: Path) -> Path:
    """Write a fresh tokenizer, with all pretrained weights whose shapes match, as a run folder to start from."""
    torch.manual_seed(seed)
    tokenizer, pretrained = build(config.tokenizer), load(str(PRETRAINED)).weights()
    weights = tokenizer.weights()
    for name, tensor in weights.items():
        if name in pretrained and pretrained[name].shape == tensor.shape:
            weights[name] = pretrained[name]
    folder = RunFolder(out)
    folder.write_config(to_dict(config))
    folder.write_model(weights)
    return out


if __name__ == "__main__":
    tyro.cli(main)
