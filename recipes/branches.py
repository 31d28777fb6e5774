"""Analyse what each sub-codebook of a factorized tokenizer has learned (FQGAN, Figures 4 and 6, appendix D in small).

    python recipes/branches.py RUN --data PICTURES… --out FOLDER [--classes NAME…]

Plots pictures of a few classes by their codes (t-SNE, one panel per branch), and prints two numbers per branch, for the
codes and for the vectors before quantization: how often a picture's nearest neighbour has the same class, and how well
a linear probe predicts the captions. The probe maps a picture to MiniLM's embedding of its caption by ridge regression;
for held-out pictures, the right caption is retrieved from all captions of the held-out pictures. The paper's probe is a
language model that writes the caption (LLaVA, scored by CIDEr), which is too large for this recipe; it answers the same
question, and its scores are printed next to ours.

Use pictures that the tokenizer was not trained on, such as `shards/test/plain` of recipes/fqgan_nano.py. Needs
`pip install 'imtok[plots]'`.
"""

import dataclasses
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from sklearn.linear_model import RidgeCV
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from imtok import pretrained
from imtok.data.loader import DataConfig, fixed_batches
from imtok.data.transforms import CropConfig
from imtok.tokenizers.catalog import load
from imtok.tokenizers.vqgan import VQGAN

CELLS = 4
"""Side of the grid of cells whose mean vectors are a picture's features."""
TEST_SHARE = 0.25
FIRST = 10
"""A caption counts as found if it ranks among the first so many."""
PAPER = {"continuous": ("3.67", "7.15", "10.28"), "codes": ("2.22", "7.40", "7.37")}
"""CIDEr of FQGAN-Dual for codebook 1, codebook 2 and both (Table 6)."""


@dataclasses.dataclass(frozen=True)
class Described:
    """Features of pictures, with their labels and captions.

    Attributes:
        features: by "continuous" (before quantization) or "codes" (after it), one array for each branch and then one
            for all branches together, with one row per picture.
        labels: labels of the pictures, None where there is none.
        captions: captions of the pictures, None where there is none.
    """

    features: dict[str, list[np.ndarray]]
    labels: list[str | None]
    captions: list[str | None]

    def having(self, chosen: list[int]) -> "Described":
        """Return the pictures with these indices."""
        parts = {kind: [array[chosen] for array in arrays] for kind, arrays in self.features.items()}
        return Described(parts, [self.labels[i] for i in chosen], [self.captions[i] for i in chosen])


def main(
    run: tyro.conf.Positional[str],
    data: tuple[str, ...],
    out: Path,
    classes: tuple[str, ...] = (),
    size: int = 128,
    count: int = 2000,
) -> None:
    """Compute features, plot the classes and train the probes.

    Args:
        run: a factorized convolutional tokenizer, as for `imtok reconstruct`.
        data: sources of pictures with labels, captions or both.
        out: folder for `classes.png`.
        classes: classes to plot; by default the five with the most pictures.
        size: side of the pictures in pixels; best the resolution that the tokenizer was trained at.
        count: largest number of pictures of each source.
    """
    tokenizer = load(run)
    if not isinstance(tokenizer, VQGAN) or not tokenizer.codebook_sizes:
        raise SystemExit(f"{run}: not a convolutional tokenizer with codebooks")
    found = describe(tokenizer, data, size, count)
    counts = Counter(label for label in found.labels if label is not None)
    classes = classes or tuple(label for label, _ in counts.most_common(5))
    labelled = found.having([i for i, label in enumerate(found.labels) if label in classes])
    captioned = found.having([i for i, caption in enumerate(found.captions) if caption is not None])
    print(f"{len(labelled.labels)} pictures of {', '.join(classes)}; {len(captioned.captions)} with captions")
    names = [f"codebook {index}" for index in range(len(tokenizer.codebook_sizes))] + ["all"]
    for kind in found.features:
        for index, name in enumerate(names):
            if len(labelled.labels) > 1:
                share, chance = same_class_neighbours(labelled.features[kind][index], labelled.labels)
                print(f"{kind}, {name}: nearest neighbour of the same class {share:.1%} (chance {chance:.1%})")
            if len(captioned.captions) > 4 * FIRST:
                hits, chance = caption_probe(captioned.features[kind][index], captioned.captions)
                paper = f"; paper: CIDEr {PAPER[kind][index]}" if len(names) == len(PAPER[kind]) else ""
                print(f"{kind}, {name}: caption among the first {FIRST} {hits:.1%} (chance {chance:.1%}){paper}")
    if len(labelled.labels) > 1:
        out.mkdir(parents=True, exist_ok=True)
        draw(labelled, classes, out / "classes.png")


@torch.no_grad()
def describe(tokenizer: VQGAN, data: tuple[str, ...], size: int, count: int) -> Described:
    """Return the mean vectors of each cell of each picture, per branch, before and after quantization."""
    branches = len(tokenizer.codebook_sizes)
    rows: dict[str, list[list[np.ndarray]]] = {kind: [[] for _ in range(branches + 1)] for kind in PAPER}
    labels: list[str | None] = []
    captions: list[str | None] = []
    config = DataConfig(crop=CropConfig(resolution=size))
    for source in data:
        for batch in fixed_batches(source, config, count=count, batch_size=16):
            before = tokenizer.encoder(batch.images)  # batch, channels, rows, columns
            codes = tokenizer.quantizer(before.flatten(2).transpose(1, 2)).latents
            after = codes.transpose(1, 2).unflatten(2, before.shape[2:])
            for kind, grid in (("continuous", before), ("codes", after)):
                cells = [F.adaptive_avg_pool2d(part, CELLS).flatten(1) for part in grid.chunk(branches, dim=1)]
                for arrays, part in zip(rows[kind], [*cells, torch.cat(cells, dim=1)], strict=True):
                    arrays.append(part.numpy())
            labels += batch.labels
            captions += batch.captions
    features = {kind: [np.concatenate(parts) for parts in branch_rows] for kind, branch_rows in rows.items()}
    return Described(features, labels, captions)


def same_class_neighbours(features: np.ndarray, labels: list[str | None]) -> tuple[float, float]:
    """Return the share of pictures whose nearest other picture has the same class, and its value by chance."""
    _, nearest = NearestNeighbors(n_neighbors=1).fit(features).kneighbors()  # excludes the picture itself
    named, counts = np.asarray(labels), np.asarray(list(Counter(labels).values()))
    chance = (counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1))
    return float((named[nearest[:, 0]] == named).mean()), float(chance)


def caption_probe(features: np.ndarray, captions: list[str | None], first: int = FIRST) -> tuple[float, float]:
    """Return how often a linear probe ranks the right caption among the `first` ones, and its value by chance.

    Pictures with the same caption share one candidate.
    """
    texts, caption_of = np.unique([caption or "" for caption in captions], return_inverse=True)
    encoder = pretrained.load("text_encoder/minilm")
    with torch.no_grad():
        parts = [encoder.embed_text(texts[i : i + 64].tolist()).numpy() for i in range(0, len(texts), 64)]
    vectors = np.concatenate(parts)
    order = np.random.default_rng(0).permutation(len(captions))
    test, train = np.split(order, [round(TEST_SHARE * len(order))])
    probe = RidgeCV(alphas=np.logspace(-2, 4, 13)).fit(features[train], vectors[caption_of[train]])
    candidates, right = np.unique(caption_of[test], return_inverse=True)
    scores = probe.predict(features[test]) @ vectors[candidates].T
    better = (scores > scores[np.arange(len(test)), right][:, None]).sum(1)
    return float((better < first).mean()), min(1.0, first / len(candidates))


def draw(described: Described, classes: tuple[str, ...], path: Path) -> None:
    """Plot the pictures of each class by t-SNE of their codes, one panel per branch."""
    branches = described.features["codes"][:-1]
    figure, panels = plt.subplots(1, len(branches), figsize=(5 * len(branches), 4.6), squeeze=False)
    labels = np.asarray(described.labels)
    for branch, (features, panel) in enumerate(zip(branches, panels[0], strict=True)):
        perplexity = min(30.0, (len(features) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)
        for name in classes:
            chosen = labels == name
            panel.scatter(points[chosen, 0], points[chosen, 1], s=14, label=name.replace("_", " "))
        panel.set(title=f"codebook {branch}", xticks=[], yticks=[])
    panels[0, -1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    tyro.cli(main)
