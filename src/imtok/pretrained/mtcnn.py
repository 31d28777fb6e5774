"""MTCNN: detection of faces and their five landmarks by a cascade of three small networks (Zhang et al. 2016)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, nms, roi_align

from imtok.checkpoints import load_tensors
from imtok.pretrained.networks import FrozenNetwork

_PYRAMID_SCALE = 0.709  # scale between pyramid levels: each has about half the area of the one before
_WINDOW, _STRIDE = 12, 2  # size and stride of the proposal network's windows in pixels
_CHUNK = 512  # crops per forward pass, which bounds the memory for pictures with many faces


@dataclass(frozen=True)
class DetectedFaces:
    """Faces of one picture, by descending score.

    Attributes:
        boxes: x0, y0, x1, y1 in pixels, inside the picture.
        landmarks: (x, y) of left eye, right eye, nose, left and right mouth corner, as seen in the picture.
        scores: confidences in [0, 1].
    """

    boxes: Float[np.ndarray, "faces 4"]
    landmarks: Float[np.ndarray, "faces 5 2"]
    scores: Float[np.ndarray, " faces"]

    def __len__(self) -> int:
        return len(self.boxes)


class MTCNN(FrozenNetwork):
    """The cascade: windows are proposed over an image pyramid and refined twice; the last network adds landmarks.

    Attributes:
        min_size: size in pixels of the smallest faces to detect.
        thresholds: minimum score of a window to pass each of the three networks.
    """

    def __init__(self, min_size: int = 20, thresholds: tuple[float, float, float] = (0.6, 0.7, 0.95)) -> None:
        super().__init__()
        self.min_size = min_size
        self.thresholds = thresholds
        self.propose = ProposalNetwork()
        self.refine = WindowNetwork((3, 28, 48, 64), kernels=(3, 3, 2), pools=(3, 3, 0), size=24, dim=128)
        self.output = WindowNetwork(
            (3, 32, 64, 64, 128), kernels=(3, 3, 3, 2), pools=(3, 3, 2, 0), size=48, dim=256, num_points=5
        )

    @torch.inference_mode()
    def detect(self, image: UInt8[np.ndarray, "height width 3"]) -> DetectedFaces:
        """Detect the faces in an RGB picture."""
        height, width = image.shape[:2]
        pixels = torch.tensor(image, device=self.propose.score.weight.device)
        picture = (pixels.permute(2, 0, 1)[None].float() - 127.5) / 128  # (1, 3, height, width)
        boxes = self._windows(picture)

        scores, moves, _ = self.refine(picture, boxes)
        passed = scores > self.thresholds[1]
        boxes, scores, moves = boxes[passed], scores[passed], moves[passed]
        best = nms(boxes, scores, 0.7)
        boxes = _square(_shifted(boxes, moves)[best])

        scores, moves, points = self.output(picture, boxes)
        passed = scores > self.thresholds[2]
        boxes, scores, moves, points = boxes[passed], scores[passed], moves[passed], points[passed]
        landmarks = boxes[:, None, :2] + points * (boxes[:, 2:] - boxes[:, :2])[:, None]  # (n, 5, 2)
        boxes = _shifted(boxes, moves)
        best = _suppress_nested(boxes, scores)
        return DetectedFaces(
            boxes=clip_boxes_to_image(boxes[best], (height, width)).cpu().numpy(),
            landmarks=landmarks[best].cpu().numpy(),
            scores=scores[best].cpu().numpy(),
        )

    def _windows(self, picture: Tensor) -> Tensor:
        """Return square windows (n, 4) that may contain a face."""
        height, width = picture.shape[2:]
        scale = _WINDOW / self.min_size
        found_boxes, found_scores = [picture.new_zeros(0, 4)], [picture.new_zeros(0)]
        while min(height, width) * scale >= _WINDOW:
            level = F.interpolate(picture, (int(height * scale + 1), int(width * scale + 1)), mode="area")
            scores, moves = self.propose(level)  # (rows, columns), (4, ...)
            row, column = (scores > self.thresholds[0]).nonzero(as_tuple=True)
            corner = torch.stack([column, row], dim=1) * _STRIDE
            boxes = torch.cat([corner, corner + _WINDOW], dim=1) / scale
            scores, moves = scores[row, column], moves[:, row, column].T
            best = nms(boxes, scores, 0.5)
            found_boxes.append(_shifted(boxes, moves)[best])
            found_scores.append(scores[best])
            scale *= _PYRAMID_SCALE
        boxes, scores = torch.cat(found_boxes), torch.cat(found_scores)
        return _square(boxes[nms(boxes, scores, 0.7)])


class ProposalNetwork(nn.Module):
    """Fully convolutional network that predicts for every 12 x 12 window a face score and the face's box."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = _trunk((3, 10, 16, 32), kernels=(3, 3, 3), pools=(2, 0, 0))
        self.score = nn.Conv2d(32, 2, 1)
        self.move = nn.Conv2d(32, 4, 1)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(picture)
        return self.score(x).softmax(1)[0, 1], self.move(x)[0]


class WindowNetwork(nn.Module):
    """Network that scores single windows and predicts the shifts of their four edges and, if last, the landmarks."""

    def __init__(
        self,
        channels: Sequence[int],
        kernels: Sequence[int],
        pools: Sequence[int],
        size: int,
        dim: int,
        num_points: int = 0,
    ) -> None:
        super().__init__()
        self.size = size
        self.num_points = num_points
        self.trunk = _trunk(channels, kernels, pools)
        self.dense = nn.Sequential(nn.Linear(channels[-1] * 9, dim), nn.PReLU(dim))
        self.score = nn.Linear(dim, 2)
        self.move = nn.Linear(dim, 4)
        self.points = nn.Linear(dim, 2 * num_points) if num_points else None

    def forward(self, picture: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores (n,), moves (n, 4) and points (n, 5, 2), the last two in units of the window's size."""
        scores, moves = [picture.new_zeros(0)], [picture.new_zeros(0, 4)]
        points = [picture.new_zeros(0, self.num_points, 2)]
        for chunk in boxes.split(_CHUNK):
            crops = roi_align(picture, [chunk], self.size, aligned=True)  # zeros outside the picture
            x = self.dense(self.trunk(crops).permute(0, 3, 2, 1).flatten(1))  # the weights expect columns before rows
            scores.append(self.score(x).softmax(1)[:, 1])
            moves.append(self.move(x))
            if (head := self.points) is not None:
                points.append(head(x).view(-1, 2, self.num_points).transpose(1, 2))
        return torch.cat(scores), torch.cat(moves), torch.cat(points)


def load_mtcnn(proposal: Path, refinement: Path, output: Path) -> MTCNN:
    """Load the cascade from its three files, whose tensors are in the order of our layers."""
    network = MTCNN()
    for part, path in ((network.propose, proposal), (network.refine, refinement), (network.output, output)):
        names = part.state_dict().keys()
        part.load_state_dict(dict(zip(names, load_tensors(path).values(), strict=True)))
    return network


def _trunk(channels: Sequence[int], kernels: Sequence[int], pools: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for (before, after), kernel, pool in zip(pairwise(channels), kernels, pools, strict=True):
        layers += [nn.Conv2d(before, after, kernel), nn.PReLU(after)]
        if pool:
            layers.append(nn.MaxPool2d(pool, 2, ceil_mode=True))
    return nn.Sequential(*layers)


def _shifted(boxes: Tensor, moves: Tensor) -> Tensor:
    size = boxes[:, 2:] - boxes[:, :2]
    return boxes + moves * size.repeat(1, 2)


def _square(boxes: Tensor) -> Tensor:
    centre = (boxes[:, 2:] + boxes[:, :2]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / 2
    return torch.cat([centre - half, centre + half], dim=1)


def _suppress_nested(boxes: Tensor, scores: Tensor, overlap: float = 0.7) -> Tensor:
    """Non-maximum suppression by overlap relative to the smaller box, which also removes boxes nested in others."""
    left_top = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    right_bottom = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    common = (right_bottom - left_top).clamp(min=0).prod(2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    share = common / torch.minimum(area[:, None], area[None])
    kept: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        if all(share[index, other] <= overlap for other in kept):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.long, device=boxes.device)
