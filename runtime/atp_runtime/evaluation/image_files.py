"""Where the image files of a benchmark are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atp_runtime.errors import InputError
from atp_runtime.evaluation.question import Question

_SHOWN = 3


@dataclass(frozen=True)
class ImageFolders:
    """Folders that images may be in.

    Attributes:
        folders: In the order in which they are searched.
    """

    folders: tuple[Path, ...]

    @classmethod
    def of(cls, images: Path | None, beside: Path, usual: Sequence[str] = ()) -> ImageFolders:
        """The folder that was named, else the one of the data; then the usual folders in it.

        Args:
            images: What the user named.
            beside: The data file, or its directory.
            usual: Paths from there that downloads have.
        """
        root = images or (beside if beside.is_dir() else beside.parent)
        return cls((root, *(root / name for name in usual)))

    def find(self, *names: str) -> Path:
        """The first file that exists under one of these names; if none, where the first belongs."""
        paths = [folder / name for folder in self.folders for name in names]
        return next((path for path in paths if path.is_file()), paths[0])


def check_images(questions: Sequence[Question]) -> None:
    """Makes sure, before hours of work, that no image file is missing.

    Raises:
        InputError: Some are; the message names the first of them.
    """
    paths = dict.fromkeys(image for it in questions for image in it.images)
    missing = [path for path in paths if isinstance(path, Path) and not path.is_file()]
    if missing:
        shown = ", ".join(map(str, missing[:_SHOWN]))
        raise InputError(
            f"{len(missing)} of {len(paths)} images are missing: {shown}"
            + (" ..." if len(missing) > _SHOWN else ""),
            why="the questions are about them.",
            fix="name the folder they are in with --images.",
        )
