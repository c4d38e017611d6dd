"""A real photo to ask about."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from atp_runtime.errors import MachineError

# A cup of espresso from above, 600 x 400 (CC0, Rachel Michetti): the subject fills the centre
# crop that the processor takes.
_PHOTO = "coffee.png"


def demo_photo(cache_dir: Path) -> Path:
    """Copy a photo out of the installed scikit-image into the cache; nothing is downloaded.

    Returns:
        Path of a PNG file, 600 x 400 RGB.

    Raises:
        MachineError: scikit-image is not installed, or came without its pictures.
    """
    # Only looked up, not imported: scikit-image's import is slow and its own way to the
    # picture may go to the network.
    package = importlib.util.find_spec("skimage")
    roots = package.submodule_search_locations if package else None
    source = next((p for r in roots or () if (p := Path(r) / "data" / _PHOTO).is_file()), None)
    if source is None:
        raise MachineError(
            f"scikit-image's picture {_PHOTO} was not found",
            why="the demo asks its question about that photo",
            fix="pip install scikit-image, or name a photo of your own",
        )
    cache_dir.mkdir(parents=True, exist_ok=True)
    target = cache_dir / _PHOTO
    partial = target.with_name(f".{_PHOTO}.{os.getpid()}")
    shutil.copyfile(source, partial)
    partial.replace(target)
    return target
