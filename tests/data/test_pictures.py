import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as skimage_data

from imtok.data.pictures import (
    MAX_PIXELS,
    PictureError,
    decode,
    encode,
    from_uint8,
    load_images,
    measure,
    save_images,
    to_uint8,
)
from imtok.data.transforms import square


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return skimage_data.astronaut()[:120, 100:280]


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM", "WEBP"])
def test_lossless_formats_are_decoded_exactly(photo, format):
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(Image.fromarray(photo), format, **options)
    assert np.array_equal(decode(data, "x"), photo)
    assert measure(data, "x") == (180, 120)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(photo, format, orientation):
    # The picture as a camera held in that orientation stores it: undoing must give the upright photo.
    stored = {
        1: photo,
        2: photo[:, ::-1],
        3: photo[::-1, ::-1],
        4: photo[::-1],
        5: photo.transpose(1, 0, 2),
        6: np.rot90(photo, 1),
        7: np.rot90(photo, 2).transpose(1, 0, 2),
        8: np.rot90(photo, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    data = saved(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif, **options)
    upright = decode(data, "x")
    assert upright.shape == photo.shape
    assert np.abs(upright.astype(int) - photo).mean() < 2
    assert measure(data, "x") == (180, 120)


def test_transparency_is_composited_on_white():
    red = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    red.paste((255, 0, 0, 255), (0, 0, 8, 16))
    red.paste((0, 0, 0, 128), (0, 0, 8, 8))
    pixels = decode(saved(red, "PNG"), "x")
    assert pixels[12, 2].tolist() == [255, 0, 0]
    assert pixels[2, 12].tolist() == [255, 255, 255]
    assert np.abs(pixels[2, 2].astype(int) - 127).max() <= 1  # half-transparent black on white
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([9, 9, 9, 0, 0, 255])
    assert decode(saved(palette, "PNG", transparency=1), "x")[0, 0].tolist() == [255, 255, 255]
    assert decode(saved(palette, "GIF"), "x")[0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_gray_keeps_its_high_byte(format):
    values = np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16)
    pixels = decode(saved(Image.fromarray(values), format), "x")
    assert np.array_equal(pixels[..., 0], values // 256)
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def grey_tiff(width: int, height: int, bits: int, white_is_zero: bool, pixels: bytes) -> bytes:
    """Return a TIFF file with a single uncompressed strip after its directory."""
    values = {256: width, 257: height, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 0, 277: 1, 278: height}
    values[279] = len(pixels)
    start = 8 + 2 + 12 * len(values) + 4
    values[273] = start
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(values.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + struct.pack("<I", 0) + pixels


def test_decodes_white_is_zero_and_12_bit_tiffs():
    levels = np.linspace(0, 0xFFFF, 64).astype("<u2").reshape(8, 8)
    expected = (levels >> 8).astype(np.uint8)
    for white_is_zero, stored in ((False, levels), (True, 0xFFFF - levels)):
        data = grey_tiff(8, 8, 16, white_is_zero, stored.astype("<u2").tobytes())
        assert np.array_equal(decode(data)[..., 0], expected)
    twelve = (levels >> 4).flatten().tolist()
    packed = b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in zip(twelve[::2], twelve[1::2], strict=True)
    )
    assert np.abs(decode(grey_tiff(8, 8, 12, False, packed))[..., 0].astype(int) - expected).max() <= 1


def test_decodes_gray_bilevel_and_cmyk(photo):
    gray = Image.fromarray(photo).convert("L")
    assert np.array_equal(decode(saved(gray, "PNG"), "x")[..., 1], np.asarray(gray))
    assert set(np.unique(decode(saved(gray.convert("1"), "PNG"), "x"))) == {0, 255}
    cmyk = decode(saved(Image.fromarray(photo).convert("CMYK"), "JPEG", quality=95), "x")
    assert np.abs(cmyk.astype(int) - photo).mean() < 4


def test_decodes_first_frame_of_an_animation():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, "x")[0, 0].tolist() == [255, 0, 0]


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + b"\0\0\0\0IDAT"


@pytest.mark.parametrize("size", [(8001, 8000), (12_000, 12_000), (60_000, 60_000)])
def test_rejects_decompression_bombs_by_their_header(size):
    with pytest.raises(PictureError, match=r"b/bomb\.png: .*more than 64000000 pixels"):
        decode(png_header(*size), "b/bomb.png")
    with pytest.raises(PictureError, match="pixels"):
        measure(png_header(*size), "bomb")
    assert MAX_PIXELS == 64_000_000


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html>not found</html>", "not a picture"),
        (b"\xff\xd8\xff", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (saved(Image.new("RGB", (1, 1)), "PNG"), "1x1 is smaller than 8 pixels"),
        (saved(Image.new("RGB", (500, 3)), "JPEG"), "500x3 is smaller"),
        (saved(Image.fromarray(np.ones((16, 16), np.float32)), "TIFF"), "floating point"),
        (saved(Image.fromarray(np.full((16, 16), 2**20, np.int32)), "TIFF"), "32-bit integer"),
    ],
)
def test_rejects_unsupported_files_with_path_and_reason(data, reason):
    with pytest.raises(PictureError, match=rf"^dir/p\.jpg: .*{reason}"):
        decode(data, "dir/p.jpg")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
def test_rejects_truncated_files_with_path(photo, format):
    data = saved(Image.fromarray(photo), format)
    with pytest.raises(PictureError, match=r"^p\.jpg: (truncated|broken|not a picture)"):
        decode(data[: len(data) // 2], "p.jpg")


def test_centre_crop_is_resize_then_crop(photo):
    cropped = square(photo, 64)
    by_hand = Image.fromarray(photo).resize((96, 64), Image.Resampling.BICUBIC).crop((16, 0, 80, 64))
    assert cropped.shape == (64, 64, 3)
    assert np.abs(cropped.astype(int) - np.asarray(by_hand)).mean() < 0.5
    # Resized to 64 rows before the crop, this picture would be a decompression bomb itself.
    line = np.zeros((8, 40_000, 3), np.uint8)
    assert square(line, 64).shape == (64, 64, 3)


def test_load_and_save(tmp_path, photo):
    (tmp_path / "a.png").write_bytes(encode(photo))
    (tmp_path / "b.jpg").write_bytes(encode(photo[:, :120], "JPEG", quality=95))
    images = load_images([tmp_path / "a.png", str(tmp_path / "b.jpg")], size=120)
    assert images.shape == (2, 3, 120, 120)
    assert images.dtype == torch.float32
    assert np.array_equal(to_uint8(images[0]), photo[:, 30:150])
    files = save_images(images, tmp_path / "out", names=["first", "second"])
    assert [file.name for file in files] == ["first.png", "second.png"]
    assert np.array_equal(np.asarray(Image.open(files[0])), photo[:, 30:150])
    with pytest.raises(PictureError, match=r"gone\.png: No such file"):
        load_images([tmp_path / "gone.png"], 64)
    for names in (["one"], ["same", "same"], ["../up", "x"]):
        with pytest.raises(ValueError, match="name"):
            save_images(images, tmp_path / "out", names=names)


def test_uint8_conversion_rounds_clips_and_rejects_nan():
    images = torch.tensor([-2.0, -1.0, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 0.0, 1.0, 7.0]).expand(1, 3, 1, 7)
    assert to_uint8(images)[0, 0, :, 0].tolist() == [0, 0, 0, 1, 128, 255, 255]
    all_values = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert np.array_equal(to_uint8(from_uint8(all_values)), all_values)
    assert from_uint8(all_values).aminmax() == (-1, 1)
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.full((3, 2, 2), torch.nan))


@pytest.mark.parametrize("behind", [False, True])
def test_measure_reads_only_the_png_header_unless_exif_may_rotate_it(photo, behind, monkeypatch):
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "PNG", exif=exif)
    rotated = buffer.getvalue()
    if behind:  # the eXIf chunk may follow the pixel data
        start = rotated.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(rotated[start : start + 4], "big")
        chunk, rotated = rotated[start:end], rotated[:start] + rotated[end:]
        rotated = rotated[:-12] + chunk + rotated[-12:]
    height, width = photo.shape[:2]
    assert measure(rotated) == (height, width)
    assert decode(rotated).shape == (width, height, 3)
    plain = encode(photo)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", None)
    assert measure(plain) == (width, height)
