"""Reproduce InsightTok's Tables 3, 4, 5, 6, 8 and 9 in miniature.

    python recipes/nano_ablations.py --data FOLDER_OF_nano.py --out FOLDER

Every run continues the same pretraining (recipes/nano_pretraining, or `--start`) with the same pictures in the same
order for the same number of steps, and trains all parts of the tokenizer unless its name says otherwise; as in the
paper's lightweight setup there is no decoder phase. The two rows of Table 6 with four times the codes have their own
pretraining of the same length. The runs form one queue, which can be stopped at any moment and resumed; finished runs
are left alone. At the end all are evaluated, and the tables are printed and written to `tables.md`.

The paper's columns are printed next to ours. They are of another model at another scale: only the order of the rows can
be compared.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: docs/training.md

import dataclasses
from pathlib import Path
from typing import Literal

import tyro
from ablation import Column, Row, Table, carry_out, check_names, only_these
from nano import run

from imtok import presets
from imtok.training.run import Phase, RunConfig

STEPS = 300
HOME = Path(__file__).parent / "nano_pretraining"
REPEATED = {"plain", "no-area", "both", "decoder-only", "ocr", "text-only"}
"""Runs that are done with every seed, since the differences between them may be due to chance."""
Parts = tuple[Literal["encoder", "quantizer", "decoder"], ...]
ALL: Parts = ("encoder", "quantizer", "decoder")


ACCURACY = Column("Text accuracy", "text_accuracy", ("signs", "words"), "{:.1%}", "T-ACC")
EDITS = Column("Edit similarity", "text_ned", ("signs", "words"), "{:.1%}", "T-NED")
SIMILARITY = Column("Face similarity", "face_similarity", ("faces",), "{:.4f}", "F-Sim")
FRECHET = Column("Fréchet distance", "fd_efficientnet_lite0", ("plain",), of_paper="rFID")
"""Deviation: a Fréchet distance on other features than the paper's."""
PSNR = Column("PSNR", "psnr", ("plain",))

TABLES = (
    Table(
        "Table 3: area weights",
        (ACCURACY, SIMILARITY, FRECHET, PSNR),
        (
            Row("plain", "without the losses", {"T-ACC": "30.89", "F-Sim": ".29", "rFID": ".60", "PSNR": "23.65"}),
            Row("no-area", "with, unweighted", {"T-ACC": "55.18", "F-Sim": ".42", "rFID": "1.11", "PSNR": "22.41"}),
            Row("both", "with, weighted by area", {"T-ACC": "53.05", "F-Sim": ".36", "rFID": ".69", "PSNR": "23.64"}),
        ),
    ),
    Table(
        "Table 4: decoder only",
        (ACCURACY, EDITS, SIMILARITY),
        (
            Row("plain", "without the losses", {"T-ACC": "23.52", "T-NED": "43.59", "F-Sim": ".27"}),
            Row("decoder-only", "decoder only", {"T-ACC": "24.15", "T-NED": "43.92", "F-Sim": ".28"}),
            Row("both", "full model", {"T-ACC": "40.64", "T-NED": "59.68", "F-Sim": ".35"}),
        ),
    ),
    Table(
        "Table 5: OCR-VQGAN's loss",
        (ACCURACY, EDITS),
        (
            Row("ocr", "whole-picture loss of OCR-VQGAN, weight 1", {"T-ACC": "28.19", "T-NED": "48.13"}),
            Row("both", "localized text loss", {"T-ACC": "40.64", "T-NED": "59.68"}),
        ),
    ),
    Table(
        "Table 6: four times the codes",
        (ACCURACY, SIMILARITY),
        (
            Row("plain", "4,096 codes, without (paper: 16,384)", {"T-ACC": "30.87", "F-Sim": ".29"}),
            Row("both", "4,096 codes, with (paper: 16,384)", {"T-ACC": "53.05", "F-Sim": ".36"}),
            Row("16k-plain", "16,384 codes, without (paper: 65,536)", {"T-ACC": "35.46", "F-Sim": ".31"}),
            Row("16k-both", "16,384 codes, with (paper: 65,536)", {"T-ACC": "55.69", "F-Sim": ".40"}),
        ),
    ),
    Table(
        "Table 8: text or face",
        (ACCURACY, SIMILARITY),
        (
            Row("plain", "neither", {"T-ACC": "23.52", "F-Sim": ".27"}),
            Row("text-only", "text", {"T-ACC": "41.36", "F-Sim": ".27"}),
            Row("face-only", "face", {"T-ACC": "23.47", "F-Sim": ".37"}),
            Row("both", "text and face", {"T-ACC": "40.64", "F-Sim": ".35"}),
        ),
    ),
    Table(
        "Table 9: regions dropped",
        (ACCURACY, SIMILARITY),
        (
            Row("plain", "100 %", {"T-ACC": "23.52", "F-Sim": ".27"}),
            Row("drop-75", "75 %", {"T-ACC": "34.03", "F-Sim": ".32"}),
            Row("drop-50", "50 %", {"T-ACC": "37.37", "F-Sim": ".34"}),
            Row("drop-25", "25 %", {"T-ACC": "39.39", "F-Sim": ".35"}),
            Row("both", "0 %", {"T-ACC": "40.64", "F-Sim": ".35"}),
        ),
    ),
)


def main(
    data: Path, out: Path, start: Path = HOME, seeds: tuple[int, ...] = (0, 1), only: tuple[str, ...] = ()
) -> None:
    """Run the queue, evaluate, and print the tables.

    Args:
        data: working folder of recipes/nano.py, for its shards.
        out: folder for the runs.
        start: run folder of the pretraining that all runs continue.
        seeds: seeds of the runs that are compared most; the other runs are done with the first seed only.
        only: names of the runs to do; by default all.
    """
    shards, runs = data / "shards", configs()
    check_names(only, list(runs))

    def initial_weights(name: str, _: int) -> Path:
        return large_pretraining(shards, out) if name.startswith("16k") else start

    carry_out(only_these(runs, only), initial_weights, TABLES, shards, out, seeds, once=runs.keys() - REPEATED)


def configs() -> dict[str, RunConfig]:
    """Return the configs of all runs by name."""
    base = presets.get("insighttok-nano-finetune")
    loss, both = base.losses, base.training.phases[0].weights
    text, face = {"text": both["text"]}, {"face": both["face"]}
    unweighted = dataclasses.replace(
        loss,
        text=dataclasses.replace(loss.text, area_weighted=False),
        face=dataclasses.replace(loss.face, area_weighted=False),
    )
    runs = {
        "plain": short(base, {}),
        "both": short(base, both),
        "no-area": short(dataclasses.replace(base, losses=unweighted), both),
        "decoder-only": short(base, both, ("decoder",)),
        "text-only": short(base, text),
        "face-only": short(base, face),
        **{f"drop-{share}": short(dropping(base, share / 100), both) for share in (75, 50, 25)},
        "ocr": short(base, {"ocr": 1.0, **face}),
        "16k-plain": short(large(base), {}),
        "16k-both": short(large(base), both),
    }
    return {name: dataclasses.replace(config, name=f"nano-{name}") for name, config in runs.items()}


def short(config: RunConfig, weights: dict[str, float], trains: Parts = ALL) -> RunConfig:
    """Return the config with a single short phase."""
    phase = Phase(name="ablation", steps=STEPS, weights=weights, trains=trains, region_share=0.8)
    return dataclasses.replace(config, training=dataclasses.replace(config.training, phases=(phase,)))


def dropping(config: RunConfig, share: float) -> RunConfig:
    """Return the config with a share of the words and faces left out of the losses."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, drop_regions=share))


def large(config: RunConfig) -> RunConfig:
    """Return the config with four times as many codes."""
    quantizer = dataclasses.replace(config.tokenizer.quantizer, codebook_size=16_384)
    return dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, quantizer=quantizer))


def large_pretraining(shards: Path, out: Path) -> Path:
    """Return the run folder of the pretraining with four times as many codes; train it if necessary."""
    return run(large(presets.get("nano-pretraining")), shards, out / "16k-pretraining")


if __name__ == "__main__":
    tyro.cli(main)
