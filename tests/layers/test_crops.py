"""Crops compared with torch's antialiased resize, warps with scikit-image, and the extent of their gradients."""

import numpy as np
import pytest
import skimage.data
import skimage.transform
import torch
import torch.nn.functional as F
from torch import Tensor

from imtok.layers.crops import Regions, align_faces, crop_regions, similarity_transform

ARCFACE = torch.tensor(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
ASTRONAUT_FACE = torch.tensor([[198.0, 112.0], [241.0, 107.0], [224.0, 133.0], [207.0, 153.0], [242.0, 149.0]])


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Two photos of 192 x 256 pixels in [-1, 1]."""
    crops = [skimage.data.astronaut()[:192, 100:356], skimage.data.coffee()[50:242, 100:356]]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 127.5 - 1


BOXES = torch.tensor(
    [[10.0, 20, 200, 150], [0, 0, 256, 192], [100, 30, 131, 41], [7, 180, 256, 192], [50, 60, 51, 61], [3, 5, 40, 190]]
)


@pytest.mark.parametrize("size", [(48, 160), (32, 128), (7, 5)])
def test_integer_box_crops_equal_torch_antialiased_resize(pictures, size):
    index = torch.tensor([0, 1, 1, 0, 1, 0])
    crops = crop_regions(pictures, Regions(BOXES, index), size)
    for crop, box, i in zip(crops, BOXES.int().tolist(), index, strict=True):
        x0, y0, x1, y1 = box
        expected = F.interpolate(pictures[i : i + 1, :, y0:y1, x0:x1], size, mode="bilinear", antialias=True)[0]
        torch.testing.assert_close(crop, expected, atol=2e-5, rtol=0)


def test_fractional_box_crops_of_a_linear_picture_are_exact():
    """On a picture that is linear in x and y, a crop equals the coordinates of its samples, away from the border."""
    y, x = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(60) + 0.5, indexing="ij")
    image = torch.stack([x, y, x + y])[None]
    crop = crop_regions(image, Regions(torch.tensor([[10.3, 5.6, 34.3, 21.6]]), torch.tensor([0])), (16, 24))[0]
    inner = (slice(2, -2), slice(2, -2))
    torch.testing.assert_close(crop[0][inner], (10.3 + torch.arange(24) + 0.5).expand(16, -1)[inner])
    torch.testing.assert_close(crop[1][inner], (5.6 + torch.arange(16) + 0.5).unsqueeze(1).expand(-1, 24)[inner])


def test_crop_gradient_covers_exactly_the_box(pictures):
    images = pictures.clone().requires_grad_()
    boxes = torch.tensor([[12.25, 30.5, 200.75, 101.0], [60.0, 60.0, 72.0, 70.0]])
    crop_regions(images, Regions(boxes, torch.tensor([0, 1])), (48, 160)).sum().backward()
    touched = (images.grad != 0).all(1)
    expected = torch.zeros_like(touched)
    expected[0, 30:101, 12:201] = True
    expected[1, 60:70, 60:72] = True
    assert torch.equal(touched, expected)


def test_crop_and_warp_gradients_match_finite_differences():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 9, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    landmarks = torch.rand(2, 5, 2, generator=generator) * 7
    regions = Regions(torch.tensor([[1.0, 2, 6, 9], [0, 0.5, 7.5, 3]]), torch.tensor([1, 0]), landmarks)
    assert torch.autograd.gradcheck(lambda x: crop_regions(x, regions, (3, 5)), images, fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: align_faces(x, regions, ARCFACE / 14, (8, 8)), images, fast_mode=True)


def test_crops_are_unchanged_by_autocast(pictures):
    regions = Regions(BOXES[:1], torch.tensor([0]), ASTRONAUT_FACE[None] - torch.tensor([100.0, 0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        crop, face = crop_regions(pictures, regions, (48, 160)), align_faces(pictures, regions, ARCFACE, (112, 112))
    assert torch.equal(crop, crop_regions(pictures, regions, (48, 160)))
    assert torch.equal(face, align_faces(pictures, regions, ARCFACE, (112, 112)))


@pytest.mark.parametrize(
    "box", [[-1.0, 0, 10, 10], [0.0, 0, 257, 10], [5.0, 5, 5, 10], [9.0, 9, 4, 12], [300.0, 300, 310, 310]]
)
def test_rejects_boxes_outside_the_picture(pictures, box):
    with pytest.raises(ValueError, match="outside its picture of 256 x 192"):
        crop_regions(pictures, Regions(torch.tensor([box]), torch.tensor([0])), (8, 8))


@pytest.mark.parametrize("index", [-1, 2])
def test_rejects_image_indices_outside_the_batch(pictures, index):
    regions = Regions(BOXES[:1], torch.tensor([index]), ASTRONAUT_FACE[None])
    with pytest.raises(ValueError, match="outside the batch of 2"):
        crop_regions(pictures, regions, (8, 8))
    with pytest.raises(ValueError, match="outside the batch of 2"):
        align_faces(pictures, regions, ARCFACE, (8, 8))


def test_empty_regions_give_empty_crops(pictures):
    empty = Regions.empty(with_landmarks=True)
    assert len(empty) == 0
    assert crop_regions(pictures, empty, (48, 160)).shape == (0, 3, 48, 160)
    assert align_faces(pictures, empty, ARCFACE, (112, 112)).shape == (0, 3, 112, 112)


def test_areas_and_regions_of_a_micro_batch():
    regions = Regions(BOXES[:3], torch.tensor([0, 2, 3]), torch.arange(30.0).view(3, 5, 2))
    assert regions.areas().tolist() == [190 * 130, 256 * 192, 31 * 11]
    part = regions.in_images(2, 4)
    assert part.image_index.tolist() == [0, 1]
    assert torch.equal(part.boxes, BOXES[1:3])
    assert part.landmarks is not None
    assert part.landmarks[0, 0].tolist() == [10.0, 11.0]
    assert part.to("cpu").landmarks is not None


def test_similarity_transform_equals_scikit_image():
    rng = np.random.default_rng(0)
    source = rng.uniform(0, 200, (50, 5, 2)).astype(np.float32)
    # a mirrored face, which the transform must not mirror back
    source[0] = source[0] @ np.array([[-1, 0], [0, 1]], np.float32)
    source[1] = (ARCFACE.numpy() - 50) * [-1, 1]
    ours = similarity_transform(torch.from_numpy(source).double(), ARCFACE.double())
    for points, transform in zip(source, ours, strict=True):
        expected = skimage.transform.SimilarityTransform.from_estimate(points, ARCFACE.numpy()).params[:2]
        np.testing.assert_allclose(transform, expected, atol=1e-4)


def test_similarity_transform_recovers_a_known_transform():
    angle, scale = 0.4, 1.7
    rotation = scale * torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).float()
    target = ASTRONAUT_FACE @ rotation.T + torch.tensor([5.0, -3.0])
    found = similarity_transform(ASTRONAUT_FACE[None], target)[0]
    torch.testing.assert_close(found, torch.cat([rotation, torch.tensor([[5.0], [-3.0]])], 1), atol=1e-3, rtol=1e-5)


def test_aligned_face_equals_scikit_image_warp():
    photo = skimage.data.astronaut()
    images = torch.from_numpy(photo).permute(2, 0, 1)[None] / 127.5 - 1
    # the aligned crop of this face extends beyond the picture
    corner = torch.tensor([[8.0, 20], [50, 14], [30, 40], [14, 58], [52, 60]])
    faces = Regions(
        torch.tensor([[170.0, 60, 270, 180], [0, 0, 60, 70]]),
        torch.zeros(2).long(),
        torch.stack([ASTRONAUT_FACE, corner]),
    )
    aligned = align_faces(images, faces, ARCFACE, (112, 112))
    for face, landmarks in zip(aligned, (ASTRONAUT_FACE, corner), strict=True):
        # scikit-image's coordinates start at the centre of the first pixel, ours at its edge
        estimate = skimage.transform.SimilarityTransform.from_estimate(landmarks.numpy() - 0.5, ARCFACE.numpy() - 0.5)
        expected = skimage.transform.warp(photo / 255, estimate.inverse, output_shape=(112, 112), order=1, cval=0)
        np.testing.assert_allclose((face.permute(1, 2, 0) + 1) / 2, expected, atol=2e-3)


def test_alignment_gradient_is_limited_to_the_aligned_crop(pictures):
    images = pictures.clone().requires_grad_()
    landmarks = ASTRONAUT_FACE - torch.tensor([100.0, 0])
    align_faces(images, Regions(BOXES[:1], torch.tensor([0]), landmarks[None]), ARCFACE, (112, 112)).sum().backward()
    transform = similarity_transform(landmarks[None].double(), ARCFACE.double())[0].numpy()
    rows, columns = np.nonzero((images.grad != 0).any(1)[0].numpy())
    x, y = transform[:, :2] @ np.stack([columns + 0.5, rows + 0.5]) + transform[:, 2:]
    reach = np.hypot(*transform[:, 0]) * np.sqrt(2)  # of bilinear sampling, in pixels of the aligned crop
    assert len(x) > 1000
    assert x.min() > -reach
    assert y.min() > -reach
    assert x.max() < 112 + reach
    assert y.max() < 112 + reach
    assert not images.grad[1].any()


def test_align_faces_rejects_missing_or_coinciding_landmarks(pictures):
    with pytest.raises(ValueError, match="without landmarks"):
        align_faces(pictures, Regions(BOXES[:1], torch.tensor([0])), ARCFACE, (112, 112))
    with pytest.raises(ValueError, match="coincide"):
        align_faces(pictures, Regions(BOXES[:1], torch.tensor([0]), torch.full((1, 5, 2), 9.0)), ARCFACE, (112, 112))
