"""Decoding and encoding of pictures: the only module that converts between bytes and pixels."""

import errno
import io
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor

from imtok.data.addresses import locate
from imtok.data.sample import PictureError, Sample
from imtok.data.transforms import square

Picture = UInt8[np.ndarray, "_ _ 3"]
"""Upright RGB pixels."""

MAX_PIXELS = 64_000_000
"""Larger pictures are rejected by their header, before any pixel is decoded."""
MAX_BYTES = 256 * 2**20
"""Larger files are rejected before they are read."""
MIN_SIDE = 8
"""Pictures with a shorter side, such as tracking pixels, are rejected: they are useless for training."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""Pillow formats that are read; those that start an external program (EPS, WMF) are excluded."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Maps an EXIF orientation to the transposition that makes the picture upright."""
_ORIENTATION_TAG = 274
_BITS_TAG, _PHOTOMETRIC_TAG = 258, 262
_PNG_ORIENTATIONS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
"""Names of the chunks and text fields in which a PNG can store its orientation."""


def decode(data: bytes, path: str = "picture", max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w 3"]:
    """Decode bytes to upright RGB pixels.

    EXIF rotation is applied; transparency is composited on white, as on a web page; 16-bit grayscale keeps its high
    byte; CMYK is converted without its colour profile; of an animation, the first frame is read.

    Args:
        data: the encoded picture, in one of `FORMATS`.
        path: name of the picture in error messages.
        max_pixels: limit on width x height.

    Raises:
        PictureError: the data are empty, not a picture, truncated or broken; the picture has a side below `MIN_SIDE` or
            more than `max_pixels`; or its pixel type has no known range (floating point, 32-bit integers).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings about metadata; real problems raise
        image = _open(data, path, max_pixels)
        try:
            image.load()
            return np.asarray(_to_rgb(_upright(image), path))
        except PictureError:
            raise
        except Exception as error:  # Pillow's plugins raise all kinds of exceptions on broken data
            condition = "truncated" if "truncated" in str(error) else "broken"
            raise PictureError(f"{path}: {condition} {image.format} ({_reason(error)})") from None


def decode_sample(sample: Sample) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a sample's picture and check that it has the size that the annotations refer to.

    Raises:
        PictureError: see `decode`; or the size differs from the sample's `width` and `height`.
    """
    picture = decode(sample.image, sample.path)
    if picture.shape[:2] != (sample.height, sample.width):
        height, width = picture.shape[:2]
        raise PictureError(
            f"{sample.path}: its row says {sample.width} x {sample.height} pixels, the picture has {width} x {height}"
        )
    return picture


def measure(data: bytes, path: str = "picture", max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return width and height of the upright picture, read from its header alone.

    Raises:
        PictureError: see `decode`, as far as the header tells.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _open(data, path, max_pixels)
        width, height = image.size
        may_turn = image.format != "TIFF"  # Pillow itself applies the orientation to TIFF sizes
        if image.format == "PNG":  # Pillow would decode all pixels to reach the metadata after them
            may_turn = any(name in data for name in _PNG_ORIENTATIONS)
        turned = may_turn and _orientation(image) >= 5
        return (height, width) if turned else (width, height)


def encode(picture: UInt8[np.ndarray, "h w 3"], format: str = "PNG", **options: int) -> bytes:
    """Encode RGB pixels to bytes; `options` are passed to Pillow's writer (`quality=90`)."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format=format, **options)
    return buffer.getvalue()


def read_bytes(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a file, local or at any fsspec address.

    Raises:
        PictureError: the file does not exist, may not be read, or is larger than `max_bytes`.
        OSError: the disk or the network failed, independently of the picture.
    """
    filesystem, place = locate(path)
    try:
        with filesystem.open(place, "rb") as file:
            too_large = (getattr(file, "size", None) or 0) > max_bytes
            data = b"" if too_large else file.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, ValueError) as error:
        raise PictureError(f"{path}: {_reason(error)}") from None
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        raise PictureError(f"{path}: {_reason(error)}") from None
    if too_large or len(data) > max_bytes:
        raise PictureError(f"{path}: larger than {max_bytes} bytes")
    return data


def downscale(picture: Picture, longest: int) -> Picture:
    """Return a copy whose longer side has at most `longest` pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return np.array(image)


def crop(picture: Picture, left: int, top: int, right: int, bottom: int) -> Picture:
    """Return the part of a picture between these pixels, clipped to the picture; at least one pixel."""
    height, width = picture.shape[:2]
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return picture[top : max(bottom, top + 1), left : max(right, left + 1)]


def load_images(paths: Iterable[str | Path], size: int) -> Float[Tensor, "n 3 {size} {size}"]:
    """Read pictures as one batch in [-1, 1]: resize the shorter side to `size` and crop the centre.

    Raises:
        PictureError: see `decode` and `read_bytes`.
    """
    pictures = [square(decode(read_bytes(path), str(path)), size) for path in paths]
    return from_uint8(np.stack(pictures)) if pictures else torch.empty(0, 3, size, size)


def save_images(images: Float[Tensor, "n 3 h w"], folder: str | Path, names: Sequence[str] | None = None) -> list[Path]:
    """Write a batch in [-1, 1] as PNG files; values outside are clamped.

    Args:
        images: the batch; one file is written per image.
        folder: output folder, which is created.
        names: file names without suffix; by default 00000, 00001, ...

    Returns:
        The files, in the order of the batch.

    Raises:
        ValueError: the number of names differs from that of the images, a name is repeated or is not a plain file name,
            or an image contains NaN.
    """
    names = [f"{index:05d}" for index in range(len(images))] if names is None else names
    if len(names) != len(images) or len(set(names)) != len(names):
        raise ValueError(f"{len(images)} images need as many different names, got {list(names)}")
    if bad := [name for name in names if name != Path(name).name]:
        raise ValueError(f"{bad[0]!r} is not a file name")
    files = [Path(folder) / f"{name}.png" for name in names]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for file, picture in zip(files, to_uint8(images), strict=True):
        file.write_bytes(encode(picture))
    return files


def to_uint8(images: Float[Tensor, "*batch 3 h w"]) -> UInt8[np.ndarray, "*batch h w 3"]:
    """Convert images in [-1, 1] to 8-bit pixels: clamp, then round 127.5 (x + 1).

    Raises:
        ValueError: an image contains NaN.
    """
    if torch.isnan(images).any():
        raise ValueError("images hold NaN")
    pixels = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.movedim(-3, -1).cpu().numpy())


def from_uint8(pictures: UInt8[np.ndarray, "*batch h w 3"]) -> Float[Tensor, "*batch 3 h w"]:
    """Convert 8-bit pixels to images in [-1, 1]; the inverse of `to_uint8`."""
    pixels = torch.from_numpy(np.array(pictures)).movedim(-1, -3)
    return (pixels.float() / 127.5 - 1).contiguous()


def _open(data: bytes, path: str, max_pixels: int) -> Image.Image:
    if not data:
        raise PictureError(f"{path}: empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise PictureError(f"{path}: more than {max_pixels} pixels") from None
    except Exception as error:
        reason = "" if isinstance(error, Image.UnidentifiedImageError) else f" ({_reason(error)})"
        raise PictureError(f"{path}: not a picture in a known format{reason}") from None
    width, height = image.size
    if width * height > max_pixels:
        raise PictureError(f"{path}: {width}x{height} is more than {max_pixels} pixels")
    if min(width, height) < MIN_SIDE:
        raise PictureError(f"{path}: {width}x{height} is smaller than {MIN_SIDE} pixels on a side")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # broken metadata does not make the pixels unusable
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _upright(image: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    return image if orientation == 1 else image.transpose(_UPRIGHT[orientation])


def _to_rgb(image: Image.Image, path: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise PictureError(f"{path}: 32-bit integer pixels, whose range is not known")
        if image.format == "TIFF":
            values = _as_tiff_means(values, image)
        return Image.fromarray(_high_byte(values)).convert("RGB")
    if image.mode == "F":
        raise PictureError(f"{path}: floating point pixels, whose range is not known")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _as_tiff_means(values: Shaped[np.ndarray, "h w"], image: Image.Image) -> Shaped[np.ndarray, "h w"]:
    """Scale a TIFF's gray values to 16 bits with 0 as black; Pillow applies neither bit depth nor white-is-zero."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_TAG, (16,))[0]
    scaled = values << (16 - bits)
    return 0xFFFF - scaled if tags.get(_PHOTOMETRIC_TAG) == 0 else scaled


def _high_byte(values: Shaped[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    return (values >> 8).astype(np.uint8)


def _reason(error: Exception) -> str:
    message = getattr(error, "strerror", None) or str(error)
    return " ".join(message.split()) or type(error).__name__
