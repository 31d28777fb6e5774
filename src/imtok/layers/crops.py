"""Regions of a batch of pictures, cut out and resized or warped in one differentiable pass.

All coordinates are continuous: a picture spans [0, width] x [0, height] and the centre of pixel i lies at i + 0.5.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from imtok.layers.precision import upcast


@dataclass(frozen=True, eq=False)
class Regions:
    """Boxes in the pictures of a batch.

    Attributes:
        boxes: x0, y0, x1, y1 in pixels; x1 and y1 are exclusive edges, so the width is x1 - x0.
        image_index: index in the batch of the picture that each box lies in.
        landmarks: five (x, y) points of each face, in the order of `imtok.data.sample.LANDMARKS`; None for words.
    """

    boxes: Float[Tensor, "n 4"]
    image_index: Int[Tensor, " n"]
    landmarks: Float[Tensor, "n 5 2"] | None = None

    @staticmethod
    def empty(with_landmarks: bool = False) -> "Regions":
        """Return an empty set of regions."""
        return Regions(
            torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, 5, 2) if with_landmarks else None
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def to(self, device: torch.device | str) -> "Regions":
        landmarks = None if self.landmarks is None else self.landmarks.to(device)
        return Regions(self.boxes.to(device), self.image_index.to(device), landmarks)

    def areas(self) -> Float[Tensor, " n"]:
        """Return the area of each box in square pixels."""
        return (self.boxes[:, 2] - self.boxes[:, 0]) * (self.boxes[:, 3] - self.boxes[:, 1])

    def in_images(self, start: int, stop: int) -> "Regions":
        """Return the regions of pictures start <= i < stop (a micro-batch), with `image_index` relative to `start`."""
        chosen = (self.image_index >= start) & (self.image_index < stop)
        landmarks = None if self.landmarks is None else self.landmarks[chosen]
        return Regions(self.boxes[chosen], self.image_index[chosen] - start, landmarks)


def crop_regions(
    images: Float[Tensor, "batch 3 height width"], regions: Regions, size: tuple[int, int]
) -> Float[Tensor, "n 3 h w"]:
    """Cut out every box and resize it to `size` with an antialiased bilinear (triangle) filter.

    The values equal those of `F.interpolate(..., mode="bilinear", antialias=True)` on each crop, computed as two matrix
    products for all crops together. Pixels outside a box do not contribute to its crop, and pixels on its edge are
    weighted by the part inside, so the gradient stays within the box. (RoI-align and `grid_sample` are about as fast;
    the former reads half a pixel beyond the box, the latter aliases when a large word is downscaled.)

    Args:
        images: pictures in any range; computed in at least fp32, even under autocast.
        regions: boxes within the pictures; may be empty.
        size: height and width of the crops; the aspect ratio is not kept.

    Raises:
        ValueError: a box is empty or lies outside its picture, or the batch has no such picture.
    """
    height, width = images.shape[2:]
    _check_images(images, regions)
    limits = regions.boxes.new_tensor([width, height])
    corners, ends = regions.boxes[:, :2], regions.boxes[:, 2:]
    if ((corners < 0) | (ends > limits) | (ends <= corners)).any():
        raise ValueError(f"a box is empty or lies outside its picture of {width} x {height} pixels")
    with torch.autocast(images.device.type, enabled=False):
        pictures = upcast(images).index_select(0, regions.image_index)  # n, 3, height, width
        rows = _resampling_weights(corners[:, 1], ends[:, 1], height, size[0]).to(pictures)  # n, h, height
        columns = _resampling_weights(corners[:, 0], ends[:, 0], width, size[1]).to(pictures)  # n, w, width
        return rows.unsqueeze(1) @ pictures @ columns.unsqueeze(1).mT


def align_faces(
    images: Float[Tensor, "batch 3 height width"],
    regions: Regions,
    template: Float[Tensor, "5 2"],
    size: tuple[int, int],
) -> Float[Tensor, "n 3 h w"]:
    """Warp every face onto the template's canvas (InsightTok eq. 7 and 8).

    Sampling is bilinear without antialiasing, with black (-1) beyond the picture's edges, as in the training of face
    recognizers. The gradient reaches the pixels under the canvas, which is placed by the landmarks, not by the box.

    Args:
        images: pictures in [-1, 1]; computed in at least fp32, even under autocast.
        regions: regions with landmarks; may be empty.
        template: target positions of the landmarks on the canvas, in pixels.
        size: height and width of the canvas.

    Raises:
        ValueError: the regions have no landmarks, the landmarks of a face coincide, or the batch has no such picture.
    """
    if regions.landmarks is None:
        raise ValueError("faces without landmarks cannot be aligned")
    _check_images(images, regions)
    (h, w), (height, width) = size, images.shape[2:]
    transform = similarity_transform(regions.landmarks, template.to(regions.landmarks))  # n, 2, 3
    a, b = transform[:, 0, 0, None, None], transform[:, 1, 0, None, None]  # n, 1, 1
    y, x = torch.meshgrid(
        torch.arange(h, device=images.device) + 0.5, torch.arange(w, device=images.device) + 0.5, indexing="ij"
    )
    dx, dy = x - transform[:, 0, 2, None, None], y - transform[:, 1, 2, None, None]  # n, h, w
    norm = a.square() + b.square()
    source = torch.stack([(a * dx + b * dy) / norm / width, (a * dy - b * dx) / norm / height], dim=-1)  # n, h, w, 2
    with torch.autocast(images.device.type, enabled=False):
        shifted = (upcast(images) + 1).index_select(0, regions.image_index)  # black becomes 0, the padding's value
        return F.grid_sample(shifted, 2 * source.to(shifted) - 1, align_corners=False) - 1


def similarity_transform(source: Float[Tensor, "n 5 2"], target: Float[Tensor, "5 2"]) -> Float[Tensor, "n 2 3"]:
    """Return the scaling, rotation and shift that maps five points closest to five others (InsightTok eq. 7).

    In the plane the least squares problem is linear: with points as complex numbers relative to their means, the map
    is multiplication by sum(conj(p) q) / sum(|p|^2). It equals Umeyama's solution and needs no SVD.

    Args:
        source: points p of each face.
        target: points q, the same for all faces.

    Returns:
        Matrices (R | t) with target ~ R source + t.

    Raises:
        ValueError: the five points of a face coincide.
    """
    source_mean, target_mean = source.mean(1), target.mean(0)  # (n, 2), (2,)
    p, q = source - source_mean.unsqueeze(1), target - target_mean
    norm = p.square().sum((1, 2))
    if (norm == 0).any():
        raise ValueError("the landmarks of a face coincide")
    a = (p * q).sum((1, 2)) / norm
    b = (p[..., 0] * q[:, 1] - p[..., 1] * q[:, 0]).sum(1) / norm
    rotation = torch.stack([a, -b, b, a], dim=-1).view(-1, 2, 2)
    shift = target_mean - (rotation * source_mean.unsqueeze(1)).sum(-1)  # no matrix product: autocast would round it
    return torch.cat([rotation, shift.unsqueeze(-1)], dim=-1)


def _check_images(images: Tensor, regions: Regions) -> None:
    if len(regions) and not 0 <= int(regions.image_index.min()) <= int(regions.image_index.max()) < len(images):
        raise ValueError(f"a region belongs to a picture outside the batch of {len(images)}")


def _resampling_weights(
    start: Float[Tensor, " n"], stop: Float[Tensor, " n"], length: int, size: int
) -> Float[Tensor, "n size length"]:
    """Return the weights of `length` pixels in each of `size` samples spread over [start, stop]; rows sum to 1."""
    start, stop = start.unsqueeze(1), stop.unsqueeze(1)
    spacing = (stop - start) / size
    centres = start + spacing * (torch.arange(size, device=start.device) + 0.5)  # n, size
    edges = torch.arange(length + 1, device=start.device, dtype=start.dtype)
    distance = (edges[:-1] + 0.5 - centres.unsqueeze(-1)).abs() / spacing.clamp(min=1).unsqueeze(-1)
    inside = (torch.minimum(edges[1:], stop) - torch.maximum(edges[:-1], start)).clamp(min=0)  # n, length
    weights = (1 - distance).clamp(min=0) * inside.unsqueeze(1)
    return weights / weights.sum(-1, keepdim=True)
