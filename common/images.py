"""Images as float tensors, 8-bit pixels and files; the crops of training and evaluation."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from common.errors import UserError

# Every decoder is an attack surface: Pillow tries no format outside this list.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
MOST_PIXELS = 89_478_485  # Pillow warns of decompression bombs beyond this
ORIENTATION = 0x0112  # EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
LARGEST_ASPECT = 64  # a 1 x 60000 image would become 256 x 15 million pixels when its short side is resized
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


def to_pixels(images: Tensor) -> np.ndarray:
    """Float images (B,3,H,W) in [-1,1] -> uint8 (B,H,W,3): clamp(127.5 x + 128, 0, 255) truncated.

    Lossless for images that came from 8-bit pixels. Source: the rule of the ADM, LlamaGen and GigaTok samplers.

    Raises: UserError for NaN or infinity.
    """
    if not torch.isfinite(images).all():
        raise UserError("a model returned images with NaN or infinity; use another checkpoint or --precision none")
    scaled = (images.detach().float() * 127.5 + 128.0).clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def from_pixels(pixels: Tensor) -> Tensor:
    """uint8 (B,H,W,3) -> float images (B,3,H,W) in [-1,1]."""
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def read_image(path: str | Path, content: bytes | None = None) -> Image.Image:
    """An image file as RGB; `path` only names the image when `content` holds the file's bytes.

    The content decides the format, not the suffix. Palettes, grey and CMYK are converted, 16-bit grey keeps its upper
    byte, transparency is dropped, and the image is turned as its EXIF orientation says.

    Raises: UserError naming the file when it is missing, truncated, in none of `FORMATS`, has 32-bit pixels, or is too
    large or too narrow to be decoded safely.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content), formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > MOST_PIXELS or max(width, height) > LARGEST_ASPECT * min(width, height):
                raise ValueError(f"{width} x {height} pixels are too many or too narrow")
            if opened.mode in ("F", "I"):
                raise ValueError(f"its pixels are {'floats' if opened.mode == 'F' else '32-bit integers'}")
            image = _upright(opened)
            if image.mode.startswith("I;16"):  # Pillow's own conversion would clip at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"image {str(path)!r} does not exist; it was listed when the job started") from error
    except Exception as error:  # Pillow's decoders raise nearly every kind of exception for damaged files
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"it is not {', '.join(FORMATS)}" if unknown else str(error) or type(error).__name__
        raise UserError(f"image {str(path)!r} cannot be read ({reason}); replace or remove this file") from error


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; a damaged EXIF block is ignored."""
    image.load()
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # Pillow's EXIF parser raises struct, index and syntax errors
        return image
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def load_images(paths: Iterable[str | Path], size: int) -> Tensor:
    """Centre crops of image files, float (B,3,size,size) in [-1,1]. Raises: UserError, as `read_image`."""
    return from_pixels(torch.from_numpy(np.stack([np.asarray(center_crop(read_image(path), size)) for path in paths])))


def save_images(images: Tensor, path: str | Path) -> None:
    """Float images (B,3,H,W) in [-1,1] -> one PNG, side by side."""
    write_png(path, np.concatenate(list(to_pixels(images)), axis=1))


def write_png(path: str | Path, pixels: np.ndarray) -> None:
    """uint8 (H,W,3) -> PNG, written whole or not at all."""
    path = Path(path)
    partial = path.with_suffix(".partial")
    Image.fromarray(pixels).save(partial, format="PNG", compress_level=1)
    os.replace(partial, path)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop: the short side resized to `size`, then the middle."""
    image = resize_short_side(image, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_crop(image: Image.Image, size: int, rng: np.random.Generator, min_fraction: float = 0.8) -> Image.Image:
    """ADM's random crop: the short side drawn uniformly from [size, ceil(size/min_fraction)], then a random square."""
    short = int(rng.integers(size, int(np.ceil(size / min_fraction)) + 1))
    image = resize_short_side(image, short)
    left = int(rng.integers(0, image.width - size + 1))
    top = int(rng.integers(0, image.height - size + 1))
    return image.crop((left, top, left + size, top + size))


def resize_short_side(image: Image.Image, short: int) -> Image.Image:
    """ADM's resizing: halve with BOX while the short side >= 2*short, then BICUBIC."""
    while min(image.size) >= 2 * short:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = short / min(image.size)
    if scale == 1:
        return image
    size = (max(short, round(image.width * scale)), max(short, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)
