import numpy as np
from skimage import data

from imtok.data.closeups import close_ups
from imtok.data.pictures import decode, encode
from imtok.data.sample import Face, Sample, TextRegion
from imtok.data.synthetic import SyntheticPictures
from imtok.data.transforms import CropConfig

CONFIG = CropConfig(resolution=128, word_height=(24.0, 48.0), face_size=(48.0, 112.0))


def test_each_crop_has_one_whole_word_of_the_configured_height() -> None:
    crops = [s for sample in SyntheticPictures(8, size=300, seed=3) for s in close_ups(sample, CONFIG, most=3)]
    assert len(crops) >= 8
    for crop in crops:
        assert decode(crop.image, crop.path).shape == (128, 128, 3)
        assert crop.words is not None
        assert len(crop.words) == 1
        assert 23.9 <= crop.words[0].height <= 48.1
        assert crop.cluster


def test_crop_pixels_match_the_moved_box() -> None:
    """A white box on black lies exactly in the box of the crop's word."""
    picture = np.zeros((200, 240, 3), dtype=np.uint8)
    picture[80:110, 60:150] = 255
    word = TextRegion(box=(60.0, 80.0, 150.0, 110.0), text="bright")
    sample = Sample(image=encode(picture), path="p.png", width=240, height=200, words=[word])
    (crop,) = close_ups(sample, CONFIG, most=5)
    pixels = decode(crop.image)
    assert crop.words is not None
    x0, y0, x1, y1 = (round(v) for v in crop.words[0].box)
    assert pixels[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].min() > 200
    outside = pixels.copy()
    outside[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2] = 0
    assert outside.max() < 60


def test_crops_are_deterministic_and_only_of_wanted_regions() -> None:
    sample = SyntheticPictures(1, size=300, seed=4)[0]
    first, second = (list(close_ups(sample, CONFIG, most=2)) for _ in range(2))
    assert first == second
    assert list(close_ups(sample, CONFIG, most=2, wanted=lambda region: False)) == []


def test_face_crops_keep_landmarks_and_skip_faces_that_reach_outside() -> None:
    points = ((218.0, 105.0), (250.0, 104.0), (235.0, 125.0), (222.0, 140.0), (250.0, 139.0))
    face = Face(box=(195.0, 65.0, 270.0, 165.0), landmarks=points)
    sample = Sample(image=encode(data.astronaut()), path="a.png", width=512, height=512, faces=[face])
    (crop,) = close_ups(sample, CONFIG, most=4)
    assert crop.faces is not None
    (found,) = crop.faces
    assert found.landmarks is not None
    scale = (found.box[2] - found.box[0]) / 75
    assert np.allclose(np.diff(found.landmarks, axis=0), np.diff(points, axis=0) * scale, atol=1e-3)
    far_face = Face(box=face.box, landmarks=((9.0, 9.0), *points[1:]))
    far_sample = Sample(image=sample.image, path="a.png", width=512, height=512, faces=[far_face])
    assert list(close_ups(far_sample, CONFIG, most=4)) == []
