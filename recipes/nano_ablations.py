"""InsightTok's Tables 3, 4, 5, 6, 8 and 9 in miniature: one queue that can be stopped at any moment and resumed.

    python recipes/nano_ablations.py --data FOLDER_OF_nano.py --out FOLDER

Every run continues the same pretraining (recipes/nano_pretraining, or `--start`) with the same pictures in the same
order for the same number of steps, encoder and all unless its name says otherwise; as in the paper's lightweight setup
there is no decoder phase. The two rows of Table 6 with four times the codes have their own pretraining, as long as the
first. Finished runs are left alone; at the end all are evaluated and the tables are printed and written to `tables.md`.

The paper's columns are printed beside ours. They are another model at another scale: only the order can be compared.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: docs/training.md

import dataclasses
from pathlib import Path
from typing import Literal

import tyro
from nano import run, test_sets

from imtok import presets
from imtok.evaluation.evaluate import evaluate
from imtok.evaluation.results import Evaluation
from imtok.training.run import Phase, RunConfig

STEPS = 400
HOME = Path(__file__).parent / "nano_pretraining"
Parts = tuple[Literal["encoder", "quantizer", "decoder"], ...]
ALL: Parts = ("encoder", "quantizer", "decoder")


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: the run that it shows, its label, and the paper's numbers."""

    run: str
    label: str
    paper: dict[str, str]


TABLES: dict[str, tuple[Row, ...]] = {
    "Table 3: area weights": (
        Row("plain", "without the losses", {"T-ACC": "30.89", "F-Sim": ".29", "rFID": ".60", "PSNR": "23.65"}),
        Row("no-area", "with, unweighted", {"T-ACC": "55.18", "F-Sim": ".42", "rFID": "1.11", "PSNR": "22.41"}),
        Row("both", "with, weighted by area", {"T-ACC": "53.05", "F-Sim": ".36", "rFID": ".69", "PSNR": "23.64"}),
    ),
    "Table 4: decoder only": (
        Row("plain", "without the losses", {"T-ACC": "23.52", "T-NED": "43.59", "F-Sim": ".27"}),
        Row("decoder-only", "decoder only", {"T-ACC": "24.15", "T-NED": "43.92", "F-Sim": ".28"}),
        Row("both", "full model", {"T-ACC": "40.64", "T-NED": "59.68", "F-Sim": ".35"}),
    ),
    "Table 5: OCR-VQGAN's loss": (
        Row("ocr", "whole-picture loss of OCR-VQGAN", {"T-ACC": "28.19", "T-NED": "48.13"}),
        Row("both", "localized text loss", {"T-ACC": "40.64", "T-NED": "59.68"}),
    ),
    "Table 6: four times the codes": (
        Row("plain", "4,096 codes, without (paper: 16,384)", {"T-ACC": "30.87", "F-Sim": ".29"}),
        Row("both", "4,096 codes, with (paper: 16,384)", {"T-ACC": "53.05", "F-Sim": ".36"}),
        Row("16k-plain", "16,384 codes, without (paper: 65,536)", {"T-ACC": "35.46", "F-Sim": ".31"}),
        Row("16k-both", "16,384 codes, with (paper: 65,536)", {"T-ACC": "55.69", "F-Sim": ".40"}),
    ),
    "Table 8: text or face": (
        Row("plain", "neither", {"T-ACC": "23.52", "F-Sim": ".27"}),
        Row("text-only", "text", {"T-ACC": "41.36", "F-Sim": ".27"}),
        Row("face-only", "face", {"T-ACC": "23.47", "F-Sim": ".37"}),
        Row("both", "text and face", {"T-ACC": "40.64", "F-Sim": ".35"}),
    ),
    "Table 9: regions dropped": (
        Row("plain", "100 %", {"T-ACC": "23.52", "F-Sim": ".27"}),
        Row("drop-75", "75 %", {"T-ACC": "34.03", "F-Sim": ".32"}),
        Row("drop-50", "50 %", {"T-ACC": "37.37", "F-Sim": ".34"}),
        Row("drop-25", "25 %", {"T-ACC": "39.39", "F-Sim": ".35"}),
        Row("both", "0 %", {"T-ACC": "40.64", "F-Sim": ".35"}),
    ),
}
COLUMNS = {
    "T-ACC": ("text_accuracy", ("signs", "words")),
    "T-NED": ("text_ned", ("signs", "words")),
    "F-Sim": ("face_similarity", ("faces",)),
    "rFID": ("fd_efficientnet_lite0", ("plain",)),
    "PSNR": ("psnr", ("plain",)),
}
"""The paper's column: our metric (a Fréchet distance of other features for rFID), and the sets that it is shown on."""


def main(data: Path, out: Path, start: Path = HOME, seeds: tuple[int, ...] = (0,), only: tuple[str, ...] = ()) -> None:
    """Run the queue, evaluate, and print the tables.

    Args:
        data: working folder of recipes/nano.py, for its shards.
        out: folder for the runs.
        start: the pretraining that all continue.
        seeds: each run is done once with every seed; a second one tells luck from effect.
        only: names of runs to do; all, if none is given.
    """
    shards = data / "shards"
    runs = {name: config for name, config in configs().items() if not only or name in only}
    done = {}
    for seed in seeds:
        for name, config in runs.items():
            begin = large_pretraining(shards, out) if name.startswith("16k") else start
            done[f"{name}-seed-{seed}"] = run(seeded(config, seed), shards, out / f"{name}-seed-{seed}", begin)
    found = evaluate(list(done.values()), test_sets(shards), out / "scores", checks=False)
    text = "\n\n".join(table(title, rows, found, seeds) for title, rows in TABLES.items())
    (out / "tables.md").write_text(text + "\n")
    print(text)


def configs() -> dict[str, RunConfig]:
    """Every run by name."""
    both = {"text": 1.0, "face": 1.0}
    base = presets.get("insighttok-nano-finetune")
    loss = base.losses
    unweighted = dataclasses.replace(
        loss,
        text=dataclasses.replace(loss.text, area_weighted=False),
        face=dataclasses.replace(loss.face, area_weighted=False),
    )
    found = {
        "plain": short(base, {}),
        "both": short(base, both),
        "no-area": short(dataclasses.replace(base, losses=unweighted), both),
        "decoder-only": short(base, both, ("decoder",)),
        "text-only": short(base, {"text": 1.0}),
        "face-only": short(base, {"face": 1.0}),
        **{f"drop-{share}": short(dropping(base, share / 100), both) for share in (75, 50, 25)},
        "ocr": short(base, {"ocr": 1.0, "face": 1.0}),
        "16k-plain": short(large(base), {}),
        "16k-both": short(large(base), both),
    }
    return {name: dataclasses.replace(config, name=f"nano-{name}") for name, config in found.items()}


def short(config: RunConfig, weights: dict[str, float], trains: Parts = ALL) -> RunConfig:
    """The one phase of a run."""
    phase = Phase(name="ablation", steps=STEPS, weights=weights, trains=trains, region_share=0.8)
    return dataclasses.replace(config, training=dataclasses.replace(config.training, phases=(phase,)))


def dropping(config: RunConfig, share: float) -> RunConfig:
    """With a share of words and faces left out of the losses."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, drop_regions=share))


def large(config: RunConfig) -> RunConfig:
    """With four times the codes."""
    quantizer = dataclasses.replace(config.tokenizer.quantizer, codebook_size=16_384)
    return dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, quantizer=quantizer))


def seeded(config: RunConfig, seed: int) -> RunConfig:
    """With other pictures, crops and restarts."""
    return dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))


def large_pretraining(shards: Path, out: Path) -> Path:
    """The pretraining with four times the codes."""
    return run(large(presets.get("nano-pretraining")), shards, out / "16k-pretraining")


def table(title: str, rows: tuple[Row, ...], found: Evaluation, seeds: tuple[int, ...]) -> str:
    """One table in Markdown: ours for every seed, the paper's beside it; runs that were not done are left out."""
    columns = [name for name in COLUMNS if any(name in row.paper for row in rows)]
    head = ["", *(f"{c}, {data}" for c in columns for data in COLUMNS[c][1]), *(f"paper: {c}" for c in columns)]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        if f"{row.run}-seed-{seeds[0]}" not in found.tokenizers:
            continue
        ours = [
            " / ".join(show(found, f"{row.run}-seed-{seed}", data, COLUMNS[c][0]) for seed in seeds)
            for c in columns
            for data in COLUMNS[c][1]
        ]
        lines.append([row.label, *ours, *(row.paper.get(c, "") for c in columns)])
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def show(found: Evaluation, name: str, data: str, metric: str) -> str:
    """A score as the paper prints it: percent for text; more digits for faces, whose cosines lie close together."""
    value = found.score(name, data, metric).value
    assert value is not None
    if metric.startswith("text"):
        return f"{100 * value:.1f}"
    return f"{value:.4f}" if metric == "face_similarity" else f"{value:.2f}"


if __name__ == "__main__":
    tyro.cli(main)
