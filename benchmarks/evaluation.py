"""What each metric of an evaluation costs, and whether its memory grows with the set.

    python benchmarks/evaluation.py [--pictures 12] [--memory 16 32]

The pictures are rendered signs of 256 pixels with their words and one invented face each (for the face norm, copies of
one portrait); the reconstructor is JPEG at quality 30. The metrics are timed without decoding and JPEG: on originals
and one reconstruction of each, or on generated pictures; and at the end the computation of scores and intervals.
Metrics that are computed in one pass share its time, which stands in the first one's row. Inception and CLIP
(ViT-B/32), whose weights users supply, are timed with random weights; LPIPS costs as much as the VGG16 distance, and
MagFace's network is not timed, nor are those of GenEval and DPG-Bench, which users also supply.

Peak memory is measured in a separate process for each size of set: all metrics of JPEG's reconstructions, and generated
pictures against a reference of as many pictures through EfficientNet. Beyond a batch of 16 pictures it may only grow by
the stored features, and by what a distance's computation at the end makes of them. Up to 1,281 pictures per quarter of
a set, features for Fréchet distances do not add to it, since they lie in blocks that are allocated with the first
picture; the table states the size of the others, those for precision and recall. These processes run with
`MALLOC_MMAP_THRESHOLD_=1048576`, with which glibc returns large blocks when they are freed; otherwise it keeps many of
them, and the peak also shows how they are scattered. The full figures are those of `--pictures 1000 --memory 250 1000`.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: docs/training.md

import copy
import io
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from skimage import data

from imtok import pretrained
from imtok.data.pictures import Picture, decode, encode
from imtok.data.readers import open_dataset
from imtok.data.sample import Dataset, Face, Sample
from imtok.data.synthetic import synthesize
from imtok.evaluation.codecs import CODECS
from imtok.evaluation.evaluate import evaluate
from imtok.evaluation.faces import FaceMeter
from imtok.evaluation.generated_meters import ClipMeter, FaceNormMeter, Generated, GeneratedMeter
from imtok.evaluation.generated_metrics import SET_METRICS, STAND_IN
from imtok.evaluation.meters import (
    CodeMeter,
    Measurement,
    Meter,
    OriginalPicture,
    PerceptualMeter,
    PixelMeter,
    Rate,
    ReconstructedPicture,
)
from imtok.evaluation.metric_names import metric_info
from imtok.evaluation.metrics import psnr, ssim
from imtok.evaluation.preprocessing import OriginalSize
from imtok.evaluation.prompt_info import PromptInfo
from imtok.evaluation.ranks import Ranks
from imtok.evaluation.reconstructors import Reconstruction
from imtok.evaluation.references import INCEPTION
from imtok.evaluation.rendered import RenderedTextMeter
from imtok.evaluation.results import as_markdown, score_of
from imtok.evaluation.set_meters import FeatureMeter, SetMeter
from imtok.evaluation.sets import EvaluationSet
from imtok.evaluation.text import TextMeter
from imtok.pretrained.clip import CLIP
from imtok.pretrained.inception import InceptionV3

SIZE = 256
TOKENS, CODES = 256, 16384
_POOLED = 1280
"""Number of pooled features of a picture by EfficientNet-Lite0."""
FACE = Face(
    box=(64.0, 64.0, 192.0, 192.0),
    landmarks=((100.0, 110.0), (156.0, 110.0), (128.0, 140.0), (106.0, 166.0), (150.0, 166.0)),
)


class Signs(Dataset):
    """The first signs of a folder, with a face each."""

    def __init__(self, folder: str, count: int) -> None:
        self._signs, self._count = open_dataset(folder), count

    def __len__(self) -> int:
        return self._count

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


class Portraits(Dataset):
    """Copies of scikit-image's portrait of an astronaut."""

    def __init__(self, count: int) -> None:
        picture = np.asarray(Image.fromarray(data.astronaut()).resize((SIZE, SIZE)))
        self._sample, self._count = Sample(image=encode(picture), path="astronaut", width=SIZE, height=SIZE), count

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> Sample:
        return replace(self._sample, path=f"{index}.png")


class OneMetric(PixelMeter):
    """PSNR or SSIM alone."""

    def __init__(self, name: str, metric: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._name, self._metric = name, metric

    def process(
        self, originals: Sequence[OriginalPicture], reconstructions: Mapping[str, Sequence[ReconstructedPicture]]
    ) -> Any:
        def value(before: OriginalPicture, after: ReconstructedPicture) -> float:
            return self._metric(_pixels(before.content), _pixels(after.content)).item()

        pairs = {name: zip(originals, several, strict=True) for name, several in reconstructions.items()}
        return {name: [(value(*pair),) * 2 for pair in several] for name, several in pairs.items()}

    def results(self, name: str) -> dict[str, Measurement]:
        return {self._name: super().results(name)[self._name]}


def main(
    pictures: int = 12,
    memory: tuple[int, ...] = (16, 32),
    peak_of: int | None = None,
    signs: str = "",
    generated: bool = False,
) -> None:
    """Print both tables.

    Args:
        pictures: number of pictures that are timed; 0: print only the table of peak memory.
        memory: sizes of the sets whose peak memory is measured.
        peak_of: evaluate a set of this size in this process, and print its peak memory in MB; for internal use.
        signs: folder of the pictures; for internal use.
        generated: evaluate them as generated pictures; for internal use.
    """
    if peak_of is not None:
        source = Signs(signs, peak_of)
        if generated:
            time_generated(set_meter(STAND_IN, peak_of), source)
        else:
            evaluate(["jpeg:30"], {"signs": source}, checks=False, cache=False)
        print(own_peak())
        return
    with tempfile.TemporaryDirectory() as folder:
        synthesize(folder, count=max(pictures, *memory), size=SIZE)  # rendered before, so that it takes no memory here
        if pictures:
            print(f"{pictures} pictures of {SIZE} px, {torch.get_num_threads()} threads\n")
            print(as_markdown(times(Signs(folder, pictures), Portraits(pictures))))
            print("\nInception (FID, sFID, inception score, precision, recall) and CLIP have random weights\n")
        print(as_markdown(peaks(folder, memory)))


def times(signs: Dataset, portraits: Dataset) -> list[tuple[str, ...]]:
    """Return a row for each metric."""
    lines: list[tuple[str, ...]] = [("metric", "ms per picture", "at the end, s")]
    seconds, _ = timed(lambda: [decode(sign.image, sign.path) for sign in signs])
    lines.append(("(reading and decoding)", f"{1000 * seconds / len(signs):.1f}", ""))
    measured = [("", time_reconstructions(meter, signs)) for meter in meters(len(signs))]
    for meter in generated_meters(len(signs)):
        source = portraits if isinstance(meter, FaceNormMeter) else signs
        measured.append(("generated: ", time_generated(meter, source)))
    for prefix, (ms, ends) in measured:
        for index, (metric, end) in enumerate(ends.items()):
            label = f"{prefix}{metric_info(metric).label}"
            lines.append((label, "the same pass" if index else f"{ms:.1f}", f"{end:.2f}"))
    return lines


def peaks(folder: str, memory: Sequence[int]) -> list[tuple[str, ...]]:
    """Return a row for each size of set."""
    lines: list[tuple[str, ...]] = [
        ("pictures", "reconstructed: peak, MB", "generated: peak, MB", "features for precision and recall, MB")
    ]
    for count in memory:
        features = 2 * count * _POOLED * 4 / 2**20  # of two sets, in fp32
        row = peak(folder, count), peak(folder, count, "--generated"), features
        lines.append((str(count), *(f"{number:.0f}" for number in row)))
    return lines


def meters(count: int) -> list[Meter[Any]]:
    """Return the meters of reconstructions."""
    efficientnet = pretrained.load(STAND_IN)
    return [
        OneMetric("psnr", psnr),
        OneMetric("ssim", ssim),
        PerceptualMeter(pretrained.load("perceptual/vgg16")),
        FeatureMeter(efficientnet, ("fd_efficientnet_lite0", "class_score_efficientnet_lite0"), count),
        FeatureMeter(untrained_inception(), ("fid", "inception_score"), count),
        TextMeter(pretrained.load("text_judge/easyocr")),
        FaceMeter(pretrained.load("face_judge/dlib")),
        Coded(),
    ]


def generated_meters(count: int) -> list[GeneratedMeter[Any]]:
    """Return the meters of generated pictures; the features of a reference take as long again."""
    detector, faces = pretrained.load("text_detector/ppocrv6"), pretrained.load("face_detector/mtcnn")
    return [
        set_meter(INCEPTION, count),
        set_meter(STAND_IN, count),
        ClipMeter(untrained_clip()),
        RenderedTextMeter(detector, pretrained.load("text_judge/easyocr")),
        FaceNormMeter(faces, pretrained.load("face_features/mobilefacenet"), "face_norm_mobilefacenet"),
    ]


def untrained_inception() -> InceptionV3:
    """Return torch-fidelity's network with random weights, which takes as long as with trained ones."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: Any, **__: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            """Ignore the weights that the constructor requires."""

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    theirs = Untrained("inception-v3-compat", ["2048", "logits_unbiased"], nothing)  # pyright: ignore[reportArgumentType]
    return InceptionV3(theirs.state_dict()).eval()


def untrained_clip() -> CLIP:
    """Return a ViT-B/32 with random weights and a tokenizer of bytes, which takes as long as a trained one."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = ["<pad>", *pre_tokenizers.ByteLevel.alphabet()]
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    reader = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    return CLIP(CLIPModel(CLIPConfig()), CLIPProcessor(CLIPImageProcessor(), reader)).eval()


def set_meter(network: str, count: int) -> SetMeter:
    """Return the meter of all metrics of a set as a whole, by one network."""
    loaded = untrained_inception() if network == INCEPTION else pretrained.load(network)
    return SetMeter(loaded, SET_METRICS[network], count)


def time_reconstructions(meter: Meter[Any], source: Dataset) -> tuple[float, dict[str, float]]:
    """Return the milliseconds per original with one reconstruction, and the seconds for each score at the end.

    What the scores share at the end is counted in the first.
    """

    def process(batch: list[OriginalPicture]) -> Any:
        reconstructions = {"jpeg": [jpeg(original) for original in batch]}
        return timed(lambda: meter.process(batch, reconstructions))

    ms = accumulate(process, meter.add, source)
    shared, found = timed(lambda: meter.results("jpeg"))
    ends = {metric: timed(lambda one=one: score_of(one, frozenset()))[0] for metric, one in found.items()}
    first = next(iter(ends))
    return ms, ends | {first: ends[first] + shared}


def time_generated(meter: GeneratedMeter[Any], source: Dataset) -> tuple[float, dict[str, float]]:
    """Return the milliseconds per generated picture, and the seconds for each score.

    Copies of the pictures' features are the reference's.
    """

    def process(batch: list[OriginalPicture]) -> Any:
        texts = [" ".join(word.text or "" for word in picture.sample.words or []) for picture in batch]
        generated = [
            Generated(sample=picture.sample, picture=picture.original, prompt_info=PromptInfo(prompt=text, text=text))
            for picture, text in zip(batch, texts, strict=True)
        ]
        return timed(lambda: meter.process(generated))

    def add(found: Any, groups: Sequence[int]) -> None:
        meter.add(found, groups)
        if isinstance(meter, SetMeter):
            meter.add_reference(copy.deepcopy(found))

    ms = accumulate(process, add, source)
    return ms, {metric: timed(lambda m=metric: score_of(meter.measure(m), frozenset()))[0] for metric in meter.metrics}


def accumulate(
    process: Callable[[list[OriginalPicture]], tuple[float, Any]],
    add: Callable[[Any, Sequence[int]], object],
    source: Dataset,
) -> float:
    """Process and add all pictures, after one that is not counted, and return the mean milliseconds per picture."""
    pictures = EvaluationSet("signs", source, OriginalSize(), None)
    seconds, counted = 0.0, 0
    for _, batch in pictures.map_batches(lambda batch: batch, Ranks()):
        if not counted:
            process(batch[:1])
        taken, found = process(batch)
        seconds += taken
        add(found, range(counted, counted + len(batch)))
        counted += len(batch)
    return 1000 * seconds / counted


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call takes, and its result."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def _pixels(picture: Picture) -> torch.Tensor:
    return torch.from_numpy(picture.copy()).movedim(-1, 0)[None]


def jpeg(one: OriginalPicture) -> ReconstructedPicture:
    """Return the reconstruction by JPEG at quality 30."""
    picture, rate = CODECS["jpeg"].compress(one.original, 30)
    return ReconstructedPicture(output=Reconstruction(picture, bits_per_pixel=rate), content=picture, restored=picture)


def own_peak() -> float:
    """Return this process's peak memory in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, `ru_maxrss` includes the peak of the process that started this one
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peak(folder: str, count: int, *flags: str) -> float:
    """Return the peak memory of an evaluation of so many pictures in a separate process, in MB."""
    command = [sys.executable, __file__, "--peak-of", str(count), "--signs", folder, *flags]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(found.stdout.splitlines()[-1])


if __name__ == "__main__":
    tyro.cli(main)
