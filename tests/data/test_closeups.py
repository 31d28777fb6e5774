import numpy as np
from skimage import data

from imtok.data.closeups import close_ups
from imtok.data.pictures import decode, encode
from imtok.data.sample import Face, Sample, TextRegion
from imtok.data.synthetic import SyntheticPictures
from imtok.data.transforms import CropConfig

CONFIG = CropConfig(resolution=128, word_height=(24.0, 48.0), face_size=(48.0, 112.0))


def test_each_square_shows_one_word_whole_at_the_wanted_size() -> None:
    squares = [s for sample in SyntheticPictures(8, size=300, seed=3) for s in close_ups(sample, CONFIG, most=3)]
    assert len(squares) >= 8
    for square in squares:
        assert decode(square.image, square.path).shape == (128, 128, 3)
        assert square.words is not None
        assert len(square.words) == 1
        assert 23.9 <= square.words[0].height <= 48.1
        assert square.cluster


def test_the_square_s_pixels_are_the_picture_s() -> None:
    """A bright box on black stays where the square's word says."""
    picture = np.zeros((200, 240, 3), dtype=np.uint8)
    picture[80:110, 60:150] = 255
    word = TextRegion(box=(60.0, 80.0, 150.0, 110.0), text="bright")
    sample = Sample(image=encode(picture), path="p.png", width=240, height=200, words=[word])
    (square,) = close_ups(sample, CONFIG, most=5)
    pixels = decode(square.image)
    assert square.words is not None
    x0, y0, x1, y1 = (round(v) for v in square.words[0].box)
    assert pixels[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].min() > 200
    outside = pixels.copy()
    outside[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2] = 0
    assert outside.max() < 60


def test_the_same_picture_gives_the_same_squares_and_what_is_unwanted_none() -> None:
    sample = SyntheticPictures(1, size=300, seed=4)[0]
    first, second = (list(close_ups(sample, CONFIG, most=2)) for _ in range(2))
    assert first == second
    assert list(close_ups(sample, CONFIG, most=2, wanted=lambda region: False)) == []


def test_a_face_keeps_its_landmarks_and_one_that_reaches_out_is_left() -> None:
    points = ((218.0, 105.0), (250.0, 104.0), (235.0, 125.0), (222.0, 140.0), (250.0, 139.0))
    face = Face(box=(195.0, 65.0, 270.0, 165.0), landmarks=points)
    sample = Sample(image=encode(data.astronaut()), path="a.png", width=512, height=512, faces=[face])
    (square,) = close_ups(sample, CONFIG, most=4)
    assert square.faces is not None
    (found,) = square.faces
    assert found.landmarks is not None
    scale = (found.box[2] - found.box[0]) / 75
    assert np.allclose(np.diff(found.landmarks, axis=0), np.diff(points, axis=0) * scale, atol=1e-3)
    far = Face(box=face.box, landmarks=((9.0, 9.0), *points[1:]))
    beyond = Sample(image=sample.image, path="a.png", width=512, height=512, faces=[far])
    assert list(close_ups(beyond, CONFIG, most=4)) == []
