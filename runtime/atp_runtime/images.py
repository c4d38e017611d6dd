"""Opens any image Pillow can read as the upright RGB photo that the preprocessing starts from.

The pixels are those of `transformers.image_utils.load_image`: the first frame, turned upright
by its EXIF orientation, converted to RGB by Pillow. That conversion drops an alpha channel and
clips 16-bit samples at 255, and so does the reference: a model answers as it was evaluated only
if it sees the same pixels.
"""

from __future__ import annotations

import logging
import stat
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from atp_runtime.errors import InputError, MachineError

# Pillow logs about odd files, which would reach the terminal of a program without a log.
logging.getLogger("PIL").addHandler(logging.NullHandler())

MAX_PIXELS = 120_000_000
"""Largest image that is decoded, in pixels.

It lets the 108-megapixel photos of phones through and bounds the decoded image to 480 MB
(Pillow keeps four bytes to an RGB pixel).
"""


def load_image(source: str | Path | Image.Image) -> Image.Image:
    """Opens an image as an upright RGB photo.

    Args:
        source: A file of any format Pillow reads, or an image that Pillow has opened already.

    Returns:
        A new image of mode RGB with its EXIF orientation applied; `source` stays as it was.
        A single transparent colour stays noted in its `info`, for the image processor.

    Raises:
        InputError: The file is missing, empty, not an image, damaged, without pixels or larger
            than `MAX_PIXELS`.
        MachineError: The image is within the limit but the memory does not hold it.
    """
    with warnings.catch_warnings():
        # Pillow warns about large images and odd palettes; the checks here are ours.
        warnings.simplefilter("ignore")
        if isinstance(source, Image.Image):
            return _upright_rgb(source, "the image that was given", owned=False)
        path = Path(source)
        _check_file(source, path)
        return _decode_file(path)


def _check_file(source: str | Path, path: Path) -> None:
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise InputError(
            f"{source} is a web address",
            why="the runtime reads images from files and never from the network",
            fix="download the image and pass the path of the file",
        )
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"image {path} does not exist",
            why="there is no file of that name to read",
            fix="check the path for typing errors",
        ) from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise InputError(
            f"image {path} is {kind}",
            why="an image is read from one regular file",
            fix="pass the path of an image file, such as photo.jpg",
        )
    if status.st_size == 0:
        raise InputError(
            f"image {path} is empty (0 bytes)",
            why="there is nothing in it to decode",
            fix="copy or download the file again",
        )


def _decode_file(path: Path) -> Image.Image:
    name = f"image {path}"
    try:
        image = Image.open(path)
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} is not an image this machine can read",
            why="its content matches none of the formats that Pillow decodes here",
            fix="convert it to PNG or JPEG (iPhone HEIC photos need that, too)",
        ) from error
    except PermissionError as error:
        raise _unreadable(path, error) from error
    except Image.DecompressionBombError as error:
        raise _too_large(name, "it declares more pixels than are ever decoded") from error
    except Exception as error:
        raise _damaged(name, error) from error
    with image:
        return _upright_rgb(image, name, owned=True)


def _upright_rgb(image: Image.Image, name: str, *, owned: bool) -> Image.Image:
    width, height = image.size
    _check_size(name, width, height)
    try:
        # Only the caller's images are copied: a copy of a large photo costs hundreds of megabytes.
        if owned:
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
        else:
            image = ImageOps.exif_transpose(image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise _too_large(name, "it declares more pixels than are ever decoded") from error
    except MemoryError as error:
        raise MachineError(
            f"not enough memory to decode {name} ({width} x {height} pixels)",
            why=f"its pixels alone take {width * height * 4 / 1e6:.0f} MB",
            fix="free some memory or pass a smaller version of the image",
        ) from error
    except Exception as error:
        # The decoders meet hostile bytes with whatever exception comes: OSError, SyntaxError,
        # struct.error, IndexError, ... No list of them holds from one Pillow to the next.
        raise _damaged(name, error) from error


def _check_size(name: str, width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise InputError(
            f"{name} has no pixels ({width} x {height})",
            why="the model needs at least one pixel to look at",
            fix="pass another image",
        )
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"it declares {width} x {height} pixels")


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputError(
        f"image {path} cannot be opened",
        why=f"the system refused it: {reason}",
        fix="check the path and the permissions of the file",
    )


def _too_large(name: str, reason: str) -> InputError:
    return InputError(
        f"{name} is too large: {reason}",
        why=f"the limit is {MAX_PIXELS / 1e6:.0f} megapixels, to keep the memory of a decoded "
        "image in bounds; a far smaller size is all that the model sees",
        fix="scale the image down first",
    )


def _damaged(name: str, error: Exception) -> InputError:
    detail = str(error) or type(error).__name__
    return InputError(
        f"{name} is damaged or incomplete",
        why=f"decoding it failed: {detail}",
        fix="copy or download the file again, or open it in an image editor and save it anew",
    )
