"""Text judges: EasyOCR's CRNN and Tesseract. Neither shares architecture or training data with PP-OCR."""

import hashlib
import io
import math
import os
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from imtok.checkpoints import load_tensors
from imtok.config import ConfigError
from imtok.pretrained.networks import FrozenNetwork
from imtok.pretrained.packages import sha256_of

_CHARACTERS = "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BUCKET = 32  # widths are rounded up to multiples of this, so that readings do not depend on the rest of the batch
_BATCH = 32
_MAX_RATIO = 40  # maximum aspect ratio (width to height); wider crops are squeezed, since no text line is that long


@dataclass(frozen=True)
class Reading:
    """The text that a judge reads in a crop, and its confidence in [0, 1], which is 0 for an empty text."""

    text: str
    score: float


class EasyOCRReader(FrozenNetwork):
    """EasyOCR's english_g2: convolutions, two bidirectional LSTMs, CTC over 96 characters."""

    height = 64
    reads_lines = True

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(1, 32),
            nn.MaxPool2d(2),
            *_convolution(32, 64),
            nn.MaxPool2d(2),
            *_convolution(64, 128),
            *_convolution(128, 128),
            nn.MaxPool2d((2, 1)),
            *_convolution(128, 256, norm=True),
            *_convolution(256, 256, norm=True),
            nn.MaxPool2d((2, 1)),
            nn.Conv2d(256, 256, 2),
            nn.ReLU(),
        )
        self.sequence = nn.Sequential(Recurrent(256), Recurrent(256))
        self.prediction = nn.Linear(256, len(_CHARACTERS) + 1)

    def forward(self, lines: Float[Tensor, "batch 1 64 width"]) -> Float[Tensor, "batch steps 97"]:
        """Return class logits per step from grey lines in [-1, 1]; class 0 is CTC's blank."""
        columns = self.features(lines).mean(2).transpose(1, 2)  # (batch, width / 4 - 1, 256)
        return self.prediction(self.sequence(columns))

    @torch.inference_mode()
    def read(self, crops: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[Reading]:
        """Read RGB crops of one word or line each."""
        buckets: dict[int, list[int]] = defaultdict(list)
        lines = [_grey_line(crop, self.height) for crop in crops]
        for index, line in enumerate(lines):
            buckets[line.shape[1]].append(index)
        readings: dict[int, Reading] = {}
        device = self.prediction.weight.device
        for indices in buckets.values():
            for start in range(0, len(indices), _BATCH):
                chunk = indices[start : start + _BATCH]
                batch = torch.tensor(np.stack([lines[index] for index in chunk]), device=device)[:, None] / 127.5 - 1
                for index, probabilities in zip(chunk, self(batch).softmax(2), strict=True):
                    readings[index] = _decode(probabilities)
        return [readings[index] for index in range(len(crops))]


def load_easyocr(weights: Path) -> EasyOCRReader:
    """Load EasyOCR's weights, whose tensors are in the order of our layers."""
    network = EasyOCRReader()
    names = network.state_dict().keys()
    network.load_state_dict(dict(zip(names, load_tensors(weights).values(), strict=True)))
    return network


class Recurrent(nn.Module):
    """A bidirectional LSTM and a linear projection back to the input's size."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(dim, dim, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.rnn(x)[0])


class TesseractReader:
    """Tesseract's English model, run through its command line on one crop at a time.

    Attributes:
        name: role/name, set by the registry.
        sha256: digest of the program's version output and of eng.traineddata; "" if that file cannot be found.

    Raises:
        ConfigError: the program fails, or has no English model.
    """

    name: str = ""
    sha256: str = ""
    reads_lines = True

    def __init__(self, program: Path) -> None:
        self.program = program
        listing = self._run(["--list-langs"], b"")  # List of available languages in "/usr/share/.../tessdata/" (2):
        if "eng" not in listing.split():
            raise ConfigError(f"{program}: has no English model; install tesseract-ocr-eng or its like")
        folder = listing.partition('"')[2].partition('"')[0]
        data = Path(folder) / "eng.traineddata"
        if folder and data.is_file():
            identity = self._run(["--version"], b"") + sha256_of(data)
            self.sha256 = hashlib.sha256(identity.encode()).hexdigest()

    def read(self, crops: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[Reading]:
        """Read RGB crops of one word or line each."""
        with ThreadPoolExecutor() as pool:  # each thread waits for its own process
            return list(pool.map(self._read_one, crops))

    def _read_one(self, crop: np.ndarray) -> Reading:
        line = np.pad(_grey_line(crop, 48), 10, mode="edge")  # Tesseract misses letters that touch the border
        with io.BytesIO() as png:
            Image.fromarray(line).save(png, "PNG")
            # Page segmentation mode 7 (a line): mode 8 (a word) adds quotation marks to the text.
            table = self._run(["stdin", "stdout", "-l", "eng", "--psm", "7", "tsv"], png.getvalue())
        rows = [row.split("\t") for row in table.splitlines()[1:]]  # level, …, confidence in percent, text
        words = [row for row in rows if len(row) == 12 and row[0] == "5" and row[11].strip()]
        if not words:
            return Reading("", 0.0)
        score = float(np.mean([float(row[10]) for row in words])) / 100
        return Reading(" ".join(row[11] for row in words), max(0.0, score))

    def _run(self, arguments: list[str], data: bytes) -> str:
        environment = os.environ | {"OMP_THREAD_LIMIT": "1"}  # multi-threading only slows it down on single words
        result = subprocess.run([str(self.program), *arguments], input=data, capture_output=True, env=environment)
        if result.returncode:
            reason = (result.stderr.decode(errors="replace").strip().splitlines() or ["no reason is given"])[0]
            raise ConfigError(f"{self.program}: failed ({reason})")
        return result.stdout.decode("utf-8", errors="replace")


def _convolution(channels: int, out_channels: int, norm: bool = False) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(channels, out_channels, 3, padding=1, bias=not norm)]
    return [*layers, nn.BatchNorm2d(out_channels), nn.ReLU()] if norm else [*layers, nn.ReLU()]


def _grey_line(crop: np.ndarray, height: int) -> np.ndarray:
    """Convert a crop to grey at the given height, padded right with its last column; uint8 (height, width)."""
    picture = Image.fromarray(crop).convert("L")
    width = max(1, math.ceil(height * min(_MAX_RATIO, picture.width / picture.height)))
    line = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    return np.pad(line, ((0, 0), (0, -width % _BUCKET)), mode="edge")


def _decode(probabilities: Tensor) -> Reading:
    """Decode greedily with CTC; the score is the mean probability of the steps that yield characters."""
    scores, classes = (values.tolist() for values in probabilities.max(1))
    before = [0, *classes]
    kept = [step for step, best in enumerate(classes) if best not in (0, before[step])]
    text = "".join(_CHARACTERS[classes[step] - 1] for step in kept)
    return Reading(text, float(np.mean([scores[step] for step in kept])) if kept else 0.0)
