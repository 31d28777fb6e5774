"""Crops of painted pictures: coloured rectangles must be found where the transformed boxes are."""

import dataclasses

import numpy as np
import pytest
import skimage.data
from PIL import Image

from imtok.config import ConfigError
from imtok.data.sample import Face, Sample, TextRegion
from imtok.data.transforms import Crop, CropConfig, random_crop, square

RED, GREEN, BLUE, GRAY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)
WORD, OTHER_WORD, FACE = (60, 40, 120, 64), (150, 130, 190, 142), (200, 20, 260, 100)


def paint(boxes: dict[tuple[int, int, int], tuple[int, int, int, int]], width=300, height=200) -> np.ndarray:
    picture = np.full((height, width, 3), GRAY, np.uint8)
    for colour, (x0, y0, x1, y1) in boxes.items():
        picture[y0:y1, x0:x1] = colour
    return picture


def find(picture: np.ndarray, colour: tuple[int, int, int]) -> tuple[float, float, float, float]:
    """Return the box of the pixels that are nearer to a colour than to gray."""
    distances = [np.abs(picture.astype(int) - c).sum(-1) for c in (colour, GRAY)]
    rows, columns = np.nonzero(distances[0] < distances[1])
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def sample(words=None, faces=None, width=300, height=200) -> Sample:
    return Sample(image=b"", path="painted", width=width, height=height, words=words, faces=faces)


def float_box(box) -> tuple[float, ...]:
    return tuple(map(float, box))


def test_boxes_follow_resize_and_crop():
    words = [TextRegion(box=float_box(WORD), text="red"), TextRegion(box=float_box(OTHER_WORD), text="green")]
    picture = paint({RED: WORD, GREEN: OTHER_WORD})
    config, seen = CropConfig(resolution=160, scale=(0.3, 1.0)), 0
    for seed in range(60):
        crop = random_crop(sample(words), config, np.random.default_rng(seed))
        assert not crop.flip
        pixels = crop.pixels(picture)
        assert pixels.shape == (160, 160, 3)
        for word in crop.words(words):
            seen += 1
            found = find(pixels, RED if word.text == "red" else GREEN)
            np.testing.assert_allclose(word.box, found, atol=1.0)
    assert seen > 30


def test_faces_follow_resize_crop_and_flip():
    eyes = {BLUE: (214, 40, 222, 48), RED: (240, 42, 248, 50)}  # left and right in the picture
    points = ((218.0, 44.0), (244.0, 46.0), (230.0, 60.0), (220.0, 80.0), (240.0, 80.0))
    face = Face(box=float_box(FACE), landmarks=points, score=0.9)
    picture = paint({GREEN: FACE} | eyes)
    flips = seen = 0
    for seed in range(80):
        crop = random_crop(
            sample(faces=[face]), CropConfig(resolution=128, scale=(0.6, 1.0)), np.random.default_rng(seed)
        )
        flips += crop.flip
        pixels = crop.pixels(picture)
        for moved in crop.faces([face]):
            seen += 1
            assert moved.score == 0.9
            left, right = moved.landmarks[:2]
            assert left[0] < right[0]
            assert moved.landmarks[3][0] < moved.landmarks[4][0]
            assert moved.landmarks[2] == crop.point(points[2])
            for eye, colour in ((left, RED if crop.flip else BLUE), (right, BLUE if crop.flip else RED)):
                if not all(10 < value < 118 for value in eye):
                    continue  # its square may be cut by the crop
                x0, y0, x1, y1 = find(pixels, colour)
                assert eye == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2), abs=1.0)
            outline = np.abs(pixels.astype(int) - GRAY).sum(-1) > 128
            columns = np.nonzero(outline.any(0))[0]
            np.testing.assert_allclose(moved.box[::2], (columns.min(), columns.max() + 1), atol=1.0)
    assert 20 < flips < 60
    assert seen > 20


def test_words_are_never_mirrored():
    word = TextRegion(box=float_box(WORD))
    generators = [np.random.default_rng(seed) for seed in range(40)]
    config = CropConfig()
    assert not any(random_crop(sample([word]), config, rng).flip for rng in generators)
    assert any(random_crop(sample([]), config, rng).flip for rng in generators)
    assert any(random_crop(sample(None), config, rng).flip for rng in generators)
    assert not any(random_crop(sample(None), dataclasses.replace(config, flip=False), rng).flip for rng in generators)
    mirrored = Crop(left=0.0, top=0.0, side=100.0, resolution=50, flip=True)
    with pytest.raises(ValueError, match="mirrored"):
        list(mirrored.words([word]))


def test_regions_that_the_crop_cuts_too_much_are_dropped():
    crop = Crop(left=0.0, top=0.0, side=100.0, resolution=50)
    words = [TextRegion(box=(x, 10.0, x + 50, 20.0)) for x in (50.0, 60.0, 60.5, 99.0, 120.0)]
    kept = list(crop.words(words))  # of which 50, 40, 39.5, 1 and 0 pixels are inside
    assert [word.box for word in kept] == [(25.0, 5.0, 50.0, 10.0), (30.0, 5.0, 50.0, 10.0)]
    faces = [Face(box=(x, 0.0, x + 50, 50.0)) for x in (70.0, 70.5)]
    assert [face.box for face in crop.faces(faces)] == [(35.0, 0.0, 50.0, 25.0)]
    inside = ((75.0, 10.0), (95.0, 10.0), (85.0, 20.0), (80.0, 30.0), (100.0, 30.0))
    outside = (*inside[:4], (100.5, 30.0))
    faces = [Face(box=(70.0, 0.0, 120.0, 50.0), landmarks=points) for points in (inside, outside)]
    assert len(list(crop.faces(faces))) == 1
    assert list(crop.words([TextRegion(box=(10.0, 10.0, 60.0, 11.9))])) == []  # thinner than a pixel


def test_quads_are_transformed_with_their_words():
    quad = ((10.0, 10.0), (30.0, 14.0), (29.0, 22.0), (9.0, 18.0))
    word = TextRegion(box=(9.0, 10.0, 30.0, 22.0), quad=quad)
    (moved,) = Crop(left=5.0, top=0.0, side=50.0, resolution=100).words([word])
    assert moved.quad == ((10.0, 20.0), (50.0, 28.0), (48.0, 44.0), (8.0, 36.0))
    assert moved.height == pytest.approx(2 * word.height)


def test_zoom_shows_a_whole_word_of_the_configured_height():
    config = CropConfig(resolution=128, word_height=(24.0, 48.0))
    small = [TextRegion(box=(200.0, 150.0, 240.0, 170.0)), TextRegion(box=(20.0, 20.0, 50.0, 34.0))]
    positions = set()
    for seed in range(100):
        rng = np.random.default_rng(seed)
        crop = random_crop(sample(small), config, rng)
        assert 0 <= crop.left <= 300 - crop.side
        assert 0 <= crop.top <= 200 - crop.side
        assert crop.side >= 64  # enlarged twice at most
        whole = [
            (word.box[3] - word.box[1], word.box)
            for word, source in ((next(iter(crop.words([source])), None), source) for source in small)
            if word is not None and crop.box(source.box, 1.0)
        ]
        assert any(24 - 1e-6 <= height <= 48 + 1e-6 for height, _ in whole)
        positions.add(round(crop.left))
    assert len(positions) > 30


def test_zoom_shows_faces_in_the_configured_size():
    config = CropConfig(resolution=128, face_size=(60.0, 80.0))
    faces = [Face(box=(100.0, 50.0, 140.0, 100.0))]
    for seed in range(50):
        crop = random_crop(sample(faces=faces), config, np.random.default_rng(seed))
        (face,) = crop.faces(faces)
        assert 60 - 1e-6 <= face.box[3] - face.box[1] <= 80 + 1e-6


@pytest.mark.parametrize(
    "box",
    [
        (10.0, 10.0, 30.0, 18.0),  # 8 pixels high: would need to be enlarged three times
        (10.0, 10.0, 290.0, 40.0),  # as long as the picture: no square shows it
        (10.0, 10.0, 150.0, 30.0),  # 140 long and 20 high: whole, it is at most 18 pixels high
    ],
)
def test_no_zoom_on_words_that_do_not_fit(box):
    config = CropConfig(resolution=128, word_height=(24.0, 48.0), scale=(0.5, 0.6))
    sides = [random_crop(sample([TextRegion(box=box)]), config, np.random.default_rng(i)).side for i in range(50)]
    assert 100 <= min(sides) <= max(sides) <= 120


@pytest.mark.parametrize("size", [(300, 200), (150, 333), (20, 31), (8, 1000)])
def test_crops_stay_inside_and_centre_crop_matches_pillow(size):
    width, height = size
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    left, top, side = (width - min(size)) / 2, (height - min(size)) / 2, min(size)
    box = (left, top, left + side, top + side)
    assert np.array_equal(square(picture, 64), Image.fromarray(picture).resize((64, 64), Image.Resampling.BICUBIC, box))
    for seed in range(30):
        crop = random_crop(sample(width=width, height=height), CropConfig(resolution=64), np.random.default_rng(seed))
        assert 0.8 * min(size) <= crop.side <= min(size)
        assert 0 <= crop.left <= width - crop.side
        assert 0 <= crop.top <= height - crop.side
        assert crop.pixels(picture).shape == (64, 64, 3)


def test_a_flipped_crop_is_the_mirror_image():
    photo = skimage.data.astronaut()
    crop = Crop(left=10.25, top=20.0, side=300.0, resolution=96)
    mirrored = dataclasses.replace(crop, flip=True)
    assert np.array_equal(mirrored.pixels(photo), crop.pixels(photo)[:, ::-1])


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": (0.9, 0.5)},
        {"scale": (0.0, 1.0)},
        {"resolution": 0},
        {"word_height": (48.0, 24.0)},
        {"max_enlargement": 0.0},
        {"max_enlargement": float("nan")},
    ],
)
def test_rejects_invalid_settings(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        CropConfig(**settings)
