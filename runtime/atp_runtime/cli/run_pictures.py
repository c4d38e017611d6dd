"""`atp-run --show-pruning`: where its pictures go."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from atp_runtime.answer import Answer
from atp_runtime.errors import InputError
from atp_runtime.manifest import Manifest
from atp_runtime.picture import save_picture
from atp_runtime.pruning_view import draw_answer, pruned_images

_SUFFIXES = (".png", ".jpg", ".jpeg")


def check_pictures(target: Path, photos: int) -> None:
    """Refuses, before the model runs, what could not be drawn or written after it.

    Args:
        target: What the user named.
        photos: How many will be drawn.

    Raises:
        InputError: There is no photo, or a picture cannot be written.
    """
    if photos == 0:
        raise InputError(
            "--show-pruning without a photo",
            why="only visual tokens are pruned.",
            fix="add --image PHOTO.",
        )
    if target.suffix.lower() not in _SUFFIXES:
        raise InputError(
            f"--show-pruning {target}",
            why=f"the suffix {target.suffix!r} names none of the formats {', '.join(_SUFFIXES)}.",
            fix=f"use a name such as {target.stem or 'pruning'}.png.",
        )
    for path in _paths(target, photos):
        reason = _unwritable(path)
        if reason:
            raise InputError(
                f"--show-pruning {path}",
                why=f"{reason}.",
                fix="name a file in a directory that you may write to.",
            )


def check_prunes(manifest: Manifest) -> None:
    """Refuses to draw what a bundle does not do.

    Raises:
        InputError: It has no pruning point, and no rule before the decoder.
    """
    points = any(stage.pruning for stage in manifest.segments)
    if not points and manifest.vision.pruning is None:
        raise InputError(
            "--show-pruning: this bundle does not prune",
            why="it was exported with --dense.",
            fix="leave --show-pruning away, or export the bundle without --dense.",
        )


def draw_pictures(answer: Answer, manifest: Manifest, target: Path) -> list[Path]:
    """Draws each photo whose tokens the answer's turn pruned; returns where to.

    Raises:
        InputError: A picture cannot be written.
        MachineError: The disk is full.
    """
    images = pruned_images(answer)
    paths = _paths(target, len(images))
    for image, path in zip(images, paths, strict=True):
        save_picture(draw_answer(answer, image, manifest.vision), path)
    return paths


def _paths(target: Path, photos: int) -> list[Path]:
    if photos == 1:
        return [target]
    return [target.with_name(f"{target.stem}-{n + 1}{target.suffix}") for n in range(photos)]


def _unwritable(path: Path) -> str | None:
    directory = path.parent
    if not directory.is_dir():
        return f"there is no directory {directory}"
    try:
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        return f"nothing can be written to {directory} ({error.strerror})"
    if path.exists() and not path.is_file():
        return "what is there is not a regular file"
    if path.exists() and not os.access(path, os.W_OK):
        return "the file that is there is write-protected"
    return None
