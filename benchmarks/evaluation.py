"""What each metric of an evaluation costs, and whether its memory grows with the set.

    python benchmarks/evaluation.py [--pictures 12] [--memory 16 32]

The pictures are rendered signs of 256 pixels with their words and one invented face each; the reconstructor is JPEG at
quality 30, which costs next to nothing. Only the meters are timed: on originals alone, what one reconstructor adds, or
on generated pictures, not counting the first batch; and at the end the computation of scores and intervals. Inception
and CLIP (ViT-B/32), whose weights users supply, are timed with random weights; LPIPS costs as much as the VGG16
distance; the networks of GenEval and DPG-Bench, which users also supply, are not timed.

Peak memory is measured in a separate process for each size of set: all metrics of JPEG's reconstructions, and generated
pictures against a reference through EfficientNet. Beyond a batch of 16 pictures it may only grow by what is stored per
picture. The full figures are those of `--pictures 1000 --memory 250 1000`.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: docs/training.md

import contextlib
import io
import itertools
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tyro

from imtok import pretrained
from imtok.config import ConfigError
from imtok.data.pictures import Picture
from imtok.data.sample import Dataset, Face, Sample
from imtok.data.synthetic import SyntheticPictures
from imtok.evaluation.codecs import CODECS
from imtok.evaluation.evaluate import evaluate
from imtok.evaluation.faces import FaceMeter
from imtok.evaluation.generated_meters import ClipMeter, FaceNormMeter, Generated, GeneratedMeter
from imtok.evaluation.meters import (
    CodeMeter,
    Meter,
    OriginalPicture,
    PerceptualMeter,
    PixelMeter,
    Rate,
    ReconstructedPicture,
)
from imtok.evaluation.metrics import psnr, ssim
from imtok.evaluation.preprocessing import OriginalSize
from imtok.evaluation.prompt_info import PromptInfo
from imtok.evaluation.ranks import Ranks
from imtok.evaluation.reconstructors import Reconstruction
from imtok.evaluation.rendered import RenderedTextMeter
from imtok.evaluation.results import as_markdown, score_of
from imtok.evaluation.set_meters import FrechetMeter, InceptionMeter, SetMeter
from imtok.evaluation.sets import EvaluationSet
from imtok.evaluation.text import TextMeter
from imtok.pretrained.clip import CLIP
from imtok.pretrained.inception import InceptionV3

SIZE = 256
TOKENS, CODES = 256, 16384
_FEATURE_BYTES = 1280 * 4
"""Of a picture, by EfficientNet."""
FACE = Face(
    box=(64.0, 64.0, 192.0, 192.0),
    landmarks=((100.0, 110.0), (156.0, 110.0), (128.0, 140.0), (106.0, 166.0), (150.0, 166.0)),
)


class Signs(Dataset):
    """Signs with a face each, rendered when they are read."""

    def __init__(self, count: int) -> None:
        self._signs = SyntheticPictures(count, seed=0, size=SIZE)

    def __len__(self) -> int:
        return len(self._signs)

    def read(self, index: int) -> Sample:
        return replace(self._signs[index], faces=[FACE])


class Coded(CodeMeter):
    """Rates and usage of a tokenizer with 256 tokens of 16,384 codes; its codes are random."""

    def __init__(self) -> None:
        super().__init__({"jpeg": (CODES,)}, {"jpeg": None})

    def process(
        self, originals: Sequence[OriginalPicture], reconstructions: Mapping[str, Sequence[ReconstructedPicture]]
    ) -> dict[str, list[Rate]]:
        def coded(one: ReconstructedPicture) -> ReconstructedPicture:
            return replace(one, output=replace(one.output, codes=torch.randint(CODES, (TOKENS, 1))))

        return super().process(
            originals, {name: list(map(coded, several)) for name, several in reconstructions.items()}
        )


class OneMetric(PixelMeter):
    """PSNR or SSIM alone."""

    def __init__(self, metric: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._metric = metric

    def process(
        self, originals: Sequence[OriginalPicture], reconstructions: Mapping[str, Sequence[ReconstructedPicture]]
    ) -> Any:
        def value(before: OriginalPicture, after: ReconstructedPicture) -> float:
            return self._metric(_pixels(before.content), _pixels(after.content)).item()

        pairs = {name: zip(originals, several, strict=True) for name, several in reconstructions.items()}
        return {name: [(value(*pair), 0.0) for pair in several] for name, several in pairs.items()}


def main(
    pictures: int = 12, memory: tuple[int, ...] = (16, 32), peak_of: int | None = None, generated: bool = False
) -> None:
    """Print both tables.

    Args:
        pictures: that are timed.
        memory: sizes of the sets whose peak memory is measured.
        peak_of: evaluate one set of so many pictures in this process, and print its peak in MB; for internal use.
        generated: of generated pictures; likewise.
    """
    if peak_of is not None:
        if generated:
            of_generated(set_meter("vision/efficientnet_lite0", peak_of), peak_of)
        else:
            evaluate(["jpeg:30"], {"signs": Signs(peak_of)}, checks=False, cache=False)
        print(own_peak())
        return
    print(f"{pictures} pictures of {SIZE} px, {torch.get_num_threads()} threads\n")
    lines = [("metric", "originals, ms a picture", "a reconstructor, ms a picture", "at the end, s")]
    for name, meter in meters().items():
        seen, compared, end = of_reconstructions(meter, pictures)
        lines.append((name, f"{seen:.1f}", f"{compared:.1f}", f"{end:.2f}"))
    for name, meter in generated_meters(pictures).items():
        drawn, end = of_generated(meter, pictures)
        lines.append((f"generated: {name}", "", f"{drawn:.1f}", f"{end:.2f}"))
    print(as_markdown(lines))
    print()
    lines = [("pictures", "reconstructed: peak memory, MB", "generated: peak memory, MB", "of which kept features, MB")]
    for count in memory:
        kept = 2 * count * _FEATURE_BYTES / 2**20
        lines.append((str(count), f"{peak(count):.0f}", f"{peak(count, '--generated'):.0f}", f"{kept:.1f}"))
    print(as_markdown(lines))


def meters() -> dict[str, Meter[Any]]:
    """One for each metric whose network is here; the others are named."""
    return {
        "PSNR": OneMetric(psnr),
        "SSIM": OneMetric(ssim),
        "VGG16 distance": PerceptualMeter(pretrained.load("perceptual/vgg16")),
        "Fréchet distance, EfficientNet-Lite0": FrechetMeter(pretrained.load("vision/efficientnet_lite0")),
        "FID and inception score, random weights": InceptionMeter(untrained_inception(), total=1000),
        "words": TextMeter(pretrained.load("text_judge/easyocr")),
        "faces": FaceMeter(pretrained.load("face_judge/dlib")),
        "bits per pixel, codebook usage": Coded(),
    }


def generated_meters(count: int) -> dict[str, GeneratedMeter[Any]]:
    """Those of generated pictures; the distances' eyes look at the reference's pictures for as long again."""
    detector, faces = pretrained.load("text_detector/ppocrv6"), pretrained.load("face_detector/mtcnn")
    return {
        "FID, sFID, IS, precision, recall, random weights": set_meter("vision/inception", count),
        "the same through EfficientNet-Lite0": set_meter("vision/efficientnet_lite0", count),
        "CLIP score, random weights": ClipMeter(untrained_clip()),
        "rendered words": RenderedTextMeter(detector, pretrained.load("text_judge/easyocr")),
        "face norm": FaceNormMeter(faces, pretrained.load("face_features/mobilefacenet"), "face_norm_mobilefacenet"),
    }


def untrained_inception() -> InceptionV3:
    """The class of torch-fidelity with random weights: it takes as long as with trained ones."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: Any, **__: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            """Its constructor wants to load something."""

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    theirs = Untrained("inception-v3-compat", ["2048", "logits_unbiased"], nothing)  # pyright: ignore[reportArgumentType]
    return InceptionV3(theirs.state_dict()).eval()


def untrained_clip() -> CLIP:
    """A ViT-B/32 with random weights that reads bytes: it takes as long as a trained one."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = ["<pad>", *pre_tokenizers.ByteLevel.alphabet()]
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    reader = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    return CLIP(CLIPModel(CLIPConfig()), CLIPProcessor(CLIPImageProcessor(), reader)).eval()


def set_meter(network: str, count: int) -> SetMeter:
    """All metrics of a set as a whole through one network."""
    sets = {kind: kind for kind in ("frechet", "spatial", "classes", "precision", "recall")}
    return SetMeter(untrained_inception() if network == "vision/inception" else pretrained.load(network), sets, count)


def of_reconstructions(meter: Meter[Any], count: int) -> tuple[float, float, float]:
    """Milliseconds a picture for originals, and what reconstructions add; seconds for the numbers at the end."""
    seconds, counted = [0.0, 0.0], 0
    source = Signs(count)
    for index, batch in enumerate(first_and_all(source)):
        drawn = [jpeg(one) for one in batch]
        started = time.perf_counter()
        meter.process(batch, {})
        between = time.perf_counter()
        found = meter.process(batch, {"jpeg": drawn})
        if index:
            seconds[0] += between - started
            seconds[1] += time.perf_counter() - between - (between - started)
            meter.add(found, range(counted, counted + len(batch)))
            counted += len(batch)
    started = time.perf_counter()
    for measurement in meter.results("jpeg").values():
        score_of(measurement, frozenset())
    return 1000 * seconds[0] / counted, 1000 * seconds[1] / counted, time.perf_counter() - started


def of_generated(meter: GeneratedMeter[Any], count: int) -> tuple[float, float]:
    """Milliseconds for a generated picture, and seconds for the numbers at the end; the pictures are the reference."""
    seconds, counted, source = 0.0, 0, Signs(count)
    for index, batch in enumerate(first_and_all(source)):
        drawn = [
            Generated(sample=one.sample, picture=one.original, prompt_info=PromptInfo(prompt=text, text=text))
            for one in batch
            for text in [" ".join(_texts(one.sample))]
        ]
        started = time.perf_counter()
        found = meter.process(drawn)
        if index:
            seconds += time.perf_counter() - started
            meter.add(found, range(counted, counted + len(batch)))
            if isinstance(meter, SetMeter):
                meter.add_reference(found)
            counted += len(batch)
    started = time.perf_counter()
    for metric in meter.metrics:
        with contextlib.suppress(ConfigError):  # signs have no faces that could be found
            score_of(meter.measure(metric), frozenset())
    return 1000 * seconds / counted, time.perf_counter() - started


def _pixels(picture: Picture) -> torch.Tensor:
    return torch.from_numpy(picture.copy()).movedim(-1, 0)[None]


def _texts(sample: Sample) -> list[str]:
    return [word.text or "" for word in sample.words or []]


def batches(source: Dataset, count: int | None) -> Iterator[list[OriginalPicture]]:
    """At most so many of the pictures."""
    return (
        batch
        for _, batch in EvaluationSet("signs", source, OriginalSize(), count).map_batches(lambda batch: batch, Ranks())
    )


def first_and_all(source: Dataset) -> Iterator[list[OriginalPicture]]:
    """A batch to warm up with, and then all."""
    return itertools.chain(batches(source, 1), batches(source, None))


def jpeg(one: OriginalPicture) -> ReconstructedPicture:
    """Its reconstruction."""
    picture, rate = CODECS["jpeg"].compress(one.original, 30)
    return ReconstructedPicture(output=Reconstruction(picture, bits_per_pixel=rate), content=picture, restored=picture)


def own_peak() -> float:
    """Of this process, in MB. On Linux `ru_maxrss` begins with what the process that started this one has held."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peak(count: int, *flags: str) -> float:
    """Of an evaluation of so many pictures in a process of its own, in MB."""
    command = [sys.executable, __file__, "--peak-of", str(count), *flags]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(found.stdout.splitlines()[-1])


if __name__ == "__main__":
    tyro.cli(main)
