"""What each sub-codebook of a factorized tokenizer has learned (FQGAN, Figures 4 and 6, and appendix D in small).

    python recipes/branches.py RUN --data PICTURES… --out FOLDER [--classes NAME…]

Draws the codes of pictures of a few classes by t-SNE, one panel a branch, and prints two numbers a branch: how often a
picture's nearest neighbour is of its own class, and how well a linear probe tells the pictures' captions. The probe
maps codes to MiniLM's vector of the caption by ridge regression; on pictures that it did not see, the right caption is
looked for among all of theirs. The paper's probe is a language model that writes the caption (LLaVA, CIDEr), which does
not fit here; the question is the same.

Needs `pip install 'imtok[plots]'`.
"""

import dataclasses
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from sklearn.linear_model import RidgeCV
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from imtok import pretrained
from imtok.data.loader import Batch, DataConfig, fixed_batches
from imtok.data.transforms import CropConfig
from imtok.tokenizers.base import Tokenizer
from imtok.tokenizers.catalog import load

CELLS = 4
"""A picture is described by the mean codes of so many cells a side."""
TEST_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class Described:
    """Pictures by their codes.

    Attributes:
        features: for each branch, one row a picture.
        labels: of the pictures, where they have one.
        captions: likewise.
    """

    features: list[np.ndarray]
    labels: list[str | None]
    captions: list[str | None]

    def having(self, chosen: list[int]) -> "Described":
        """Some of the pictures."""
        parts = [feature[chosen] for feature in self.features]
        return Described(parts, [self.labels[i] for i in chosen], [self.captions[i] for i in chosen])


def main(
    run: str, data: tuple[str, ...], out: Path, classes: tuple[str, ...] = (), size: int = 128, count: int = 2000
) -> None:
    """Describe, draw and probe.

    Args:
        run: a factorized tokenizer, as for `imtok reconstruct`.
        data: pictures with labels, captions or both.
        out: folder for `classes.png`.
        classes: that are drawn; without any, the five with the most pictures.
        size: of the pictures.
        count: how many pictures of each source.
    """
    tokenizer = load(run)
    if not tokenizer.tokens_on_grid:
        raise SystemExit(f"{run}: its tokens do not lie on a grid")
    found = describe(tokenizer, data, size, count)
    counts = Counter(label for label in found.labels if label is not None)
    classes = classes or tuple(label for label, _ in counts.most_common(5))
    labelled = found.having([i for i, label in enumerate(found.labels) if label in classes])
    captioned = found.having([i for i, caption in enumerate(found.captions) if caption is not None])
    print(f"{len(labelled.labels)} pictures of {', '.join(classes)}; {len(captioned.captions)} with captions")
    names = [f"codebook {index}" for index in range(len(found.features))] + ["all"]
    for index, name in enumerate(names):
        if labelled.labels:
            share, chance = same_class_neighbours(matrix(labelled, index), labelled.labels)
            print(f"{name}: nearest neighbour of the same class {share:.1%} (chance {chance:.1%})")
        if captioned.captions:
            hits, chance = caption_probe(matrix(captioned, index), captioned.captions)
            print(f"{name}: right caption among the first ten {hits:.1%} (chance {chance:.1%})")
    if labelled.labels:
        out.mkdir(parents=True, exist_ok=True)
        draw(labelled, classes, out / "classes.png")


@torch.no_grad()
def describe(tokenizer: Tokenizer, data: tuple[str, ...], size: int, count: int) -> Described:
    """The mean quantized vectors of each cell of each picture, branch by branch."""
    batches: list[Batch] = []
    config = DataConfig(crop=CropConfig(resolution=size))
    for source in data:
        batches += fixed_batches(source, config, count=count, batch_size=16)
    rows: list[list[np.ndarray]] = [[] for _ in tokenizer.codebook_sizes]
    for batch in batches:
        encoding = tokenizer.encode(batch.images)
        for branch, part in enumerate(tokenizer.split(encoding.latents)):
            grid = part.transpose(1, 2).unflatten(2, encoding.grid_size)
            rows[branch].append(torch.nn.functional.adaptive_avg_pool2d(grid, CELLS).flatten(1).numpy())
    labels = [label for batch in batches for label in batch.labels]
    captions = [caption for batch in batches for caption in batch.captions]
    return Described([np.concatenate(parts) for parts in rows], labels, captions)


def matrix(described: Described, branch: int) -> np.ndarray:
    """One branch's features, or all side by side for the number after the last."""
    parts = described.features
    return np.concatenate(parts, axis=1) if branch == len(parts) else parts[branch]


def same_class_neighbours(features: np.ndarray, labels: list[str | None]) -> tuple[float, float]:
    """Share of pictures whose nearest other picture has their class, and what chance would give."""
    _, nearest = NearestNeighbors(n_neighbors=2).fit(features).kneighbors(features)
    named = np.asarray(labels)
    shares = np.asarray(list(Counter(labels).values())) / len(labels)
    return float((named[nearest[:, 1]] == named).mean()), float((shares**2).sum())


def caption_probe(features: np.ndarray, captions: list[str | None], first: int = 10) -> tuple[float, float]:
    """How often a linear probe ranks the right caption among the first ones, and what chance would give."""
    texts, encoder = [caption or "" for caption in captions], pretrained.load("text_encoder/minilm")
    with torch.no_grad():
        wanted = np.concatenate([encoder.embed_text(texts[i : i + 64]).numpy() for i in range(0, len(texts), 64)])
    order = np.random.default_rng(0).permutation(len(texts))
    test, train = np.split(order, [round(TEST_SHARE * len(order))])
    probe = RidgeCV(alphas=np.logspace(-2, 4, 13)).fit(features[train], wanted[train])
    scores = probe.predict(features[test]) @ wanted[test].T
    right = scores.diagonal()[:, None]
    return float(((scores > right).sum(1) < first).mean()), first / len(test)


def draw(described: Described, classes: tuple[str, ...], path: Path) -> None:
    """One panel a branch."""
    figure, panels = plt.subplots(1, len(described.features), figsize=(5 * len(described.features), 4.6), squeeze=False)
    labels = np.asarray(described.labels)
    for branch, panel in enumerate(panels[0]):
        features = described.features[branch]
        perplexity = min(30.0, (len(features) - 1) / 3)
        places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)
        for name in classes:
            chosen = labels == name
            panel.scatter(places[chosen, 0], places[chosen, 1], s=14, label=name.replace("_", " "))
        panel.set(title=f"codebook {branch}", xticks=[], yticks=[])
    panels[0, -1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    tyro.cli(main)
