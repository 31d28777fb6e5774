import numpy as np
import pytest
from skimage import data as skimage_data

from imtok.data.grounds import COLOURS, Colour, draw_colour, draw_ground, find_photos, with_article
from imtok.data.pictures import encode
from imtok.data.sample import DataError


def test_contrast_is_the_wcag_ratio():
    black, white, gray = Colour("black", (0, 0, 0)), Colour("white", (255, 255, 255)), Colour("gray", (119, 119, 119))
    assert black.contrast(white) == pytest.approx(21)
    assert white.contrast(black) == pytest.approx(21)
    assert white.contrast(gray) == pytest.approx(4.48, abs=0.01)  # the well-known #777 on white
    assert gray.contrast(gray) == 1


def test_drawn_colours_have_the_required_contrast():
    rng = np.random.default_rng(0)
    for _ in range(300):
        ground = draw_colour(rng)
        ink = draw_colour(rng, (ground,), 3.0)
        assert ink.contrast(ground) >= 3
        assert ink.name != ground.name
        assert np.abs(np.subtract(ink.rgb, COLOURS[ink.name])).max() <= 12


def test_grounds_match_their_descriptions():
    rng = np.random.default_rng(1)
    kinds = set()
    for _ in range(200):
        ground = draw_ground(rng, 48, ())
        kinds.add(ground.description.split()[2])
        assert ground.pixels.shape == (48, 48, 3)
        assert ground.pixels.dtype == np.uint8
        centre = np.mean([colour.rgb for colour in ground.colours], axis=0)
        assert np.abs(ground.pixels.mean((0, 1)) - centre).max() < 40
        assert ground.colours[0].name in ground.description
        if len(ground.colours) == 1 and "speckled" not in ground.description:
            assert (ground.pixels == ground.pixels[0, 0]).all()
    assert {"striped", "speckled"} < kinds


def test_photographs_from_a_folder_become_grounds(tmp_path):
    with pytest.raises(DataError, match="no readable pictures"):
        find_photos(str(tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "a.png").write_bytes(encode(np.full((60, 90, 3), (200, 100, 50), np.uint8)))
    (photo,) = find_photos(str(tmp_path))
    crop = photo.draw_crop(np.random.default_rng(0), 32).reshape(-1, 3)
    assert crop.shape == (1024, 3)
    assert np.allclose(crop / crop[:, :1], (1, 0.5, 0.25), atol=0.02)
    found = {draw_ground(np.random.default_rng(seed), 32, (photo,)).description for seed in range(40)}
    assert "in front of a photograph" in found


def test_scikit_images_textures_are_grounds_but_its_photos_are_not():
    descriptions = [photo.description for photo in find_photos()]
    assert "a brick wall" in descriptions
    used = {photo.path.rsplit("/", 1)[-1] for photo in find_photos()}
    assert not used & {"astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "page.png", "motorcycle_left.png"}
    assert skimage_data.brick().ndim == 2
    pixels = find_photos()[0].draw_crop(np.random.default_rng(0), 64)
    assert pixels[..., 0].mean() > pixels[..., 2].mean() + 20  # the gray bricks are tinted


def test_indefinite_articles():
    assert [with_article(name) for name in ("orange", "red")] == ["an orange", "a red"]
