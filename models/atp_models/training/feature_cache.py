"""What the frozen vision tower made of images, kept on disk.

One file of float16 rows per tower, to which images that it has not seen yet are appended. So
epochs, further runs and other selections of the same images need no tower, and an interrupted
run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atp_models.json_files import write_json
from atp_models.training.pictures import PixelValues
from atp_models.training.progress import Progress
from atp_models.training.soft_decoder import SoftDecoder
from atp_runtime.errors import InputError, MachineError

_HASHES = "image-hashes.json"
_BATCH = 16
_ITEM = 2  # bytes of a float16


class CachedFeatures:
    """Reads features that `fill_cache` computed.

    Args:
        rows: float16 [images, features, width], raw.
        shape: Features and width of an image.
        places: Index of its row, by file.
    """

    kind = "tower_features"

    def __init__(self, rows: Path, shape: tuple[int, int], places: dict[Path, int]) -> None:
        self._rows = rows
        self._shape = shape
        self._places = places
        self._mapped: Any = None

    def stack(self, files: Sequence[Path]) -> Tensor:
        """Features float32 [images, features, width] of some files."""
        if self._mapped is None:  # opened in the process that reads it
            flat = np.memmap(self._rows, dtype=np.float16, mode="r")
            self._mapped = flat.reshape(-1, *self._shape)
        chosen = self._mapped[[self._places[file] for file in files]]
        return torch.from_numpy(chosen.astype(np.float32))


def fill_cache(
    directory: Path,
    files: Sequence[Path],
    *,
    pixels: PixelValues,
    decoder: SoftDecoder,
    progress: Progress,
) -> CachedFeatures:
    """Computes what is missing of some images' features, and opens them.

    Args:
        directory: Made if absent.
        files: Images, each once; at least one.
        pixels: Reads them.
        decoder: Its tower computes them.
        progress: Told about every batch.

    Raises:
        InputError: An image cannot be read.
        MachineError: The disk has too little space.
    """
    directory.mkdir(parents=True, exist_ok=True)
    hashes = _image_hashes(directory, files)
    device = next(decoder.parameters()).device

    def compute(batch: Sequence[Path]) -> Tensor:
        return decoder.tower_features(pixels.stack(batch).to(device)).half().cpu()

    stem = directory / f"features-{_tower_hash(decoder, pixels)[:16]}"
    features, width = compute(files[:1]).shape[1:]
    store = _Store.open(stem, (features, width))
    # Of files with the same content, one is read.
    missing = {name: file for file, name in hashes.items() if name not in store.places}
    if missing:
        _require_space(directory, len(missing) * store.row_bytes)
        with progress.task("vision features", len(missing)) as advance:
            for batch in _batches(list(missing)):
                store.append(batch, compute([missing[name] for name in batch]))
                advance(len(batch))
    places = {file: store.places[name] for file, name in hashes.items()}
    return CachedFeatures(store.rows, store.shape, places)


@dataclass(frozen=True)
class _Store:
    """The rows of a tower, and beside them whose they are.

    Attributes:
        rows: The file of rows.
        names: A file with the hash of each row's image, a line each.
        shape: Features and width of a row.
        places: Index of each row, by hash; grows.
    """

    rows: Path
    names: Path
    shape: tuple[int, int]
    places: dict[str, int]

    @classmethod
    def open(cls, stem: Path, shape: tuple[int, int]) -> _Store:
        """Opens what there is, without what an interrupted run left half written."""
        store = cls(stem.with_suffix(".f16"), stem.with_suffix(".txt"), shape, {})
        if not store.names.exists():
            store.rows.touch()
            store.names.touch()
        written = store.rows.stat().st_size // store.row_bytes
        listed = store.names.read_text(encoding="ascii")
        names = listed.split("\n")[:-1][:written]  # the last line may lack its end
        store.places.update({name: row for row, name in enumerate(names)})
        whole = len(names) * store.row_bytes
        lines = "".join(f"{name}\n" for name in names)
        if lines != listed or store.rows.stat().st_size != whole:
            with store.rows.open("r+b") as rows:
                rows.truncate(whole)
            store.names.write_text(lines, encoding="ascii")
        return store

    @property
    def row_bytes(self) -> int:
        """Of an image."""
        return self.shape[0] * self.shape[1] * _ITEM

    def append(self, names: Sequence[str], features: Tensor) -> None:
        """Adds images: the rows first, so that no name ever lacks its row."""
        with self.rows.open("ab") as rows:
            rows.write(features.numpy().tobytes())
        with self.names.open("a", encoding="ascii") as listed:
            listed.writelines(f"{name}\n" for name in names)
        self.places.update({name: len(self.places) + at for at, name in enumerate(names)})


def _batches(names: list[str]) -> list[list[str]]:
    return [names[start : start + _BATCH] for start in range(0, len(names), _BATCH)]


def _image_hashes(directory: Path, files: Sequence[Path]) -> dict[Path, str]:
    """sha256 of each file; files of known size and time are not read again."""
    known_file = directory / _HASHES
    known: dict[str, list[Any]] = {}
    if known_file.exists():
        try:
            known = json.loads(known_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(
                f"{known_file} is damaged ({error})",
                why="it tells which images are in the cache.",
                fix="remove it; the images are then read again.",
            ) from error
    hashes = {}
    for file in files:
        stat = file.stat()
        identity = [stat.st_size, stat.st_mtime_ns]
        entry = known.get(str(file.resolve()))
        if entry is None or entry[:2] != identity:
            entry = [*identity, hashlib.sha256(file.read_bytes()).hexdigest()]
            known[str(file.resolve())] = entry
        hashes[file] = entry[2]
    partial = known_file.with_suffix(".partial")
    write_json(partial, known)
    partial.replace(known_file)
    return hashes


def _tower_hash(decoder: SoftDecoder, pixels: PixelValues) -> str:
    config = decoder.llava.config
    chosen = [config.vision_feature_layer, config.vision_feature_select_strategy]
    digest = hashlib.sha256(f"{pixels.description()} {chosen}".encode())
    for name, value in sorted(decoder.llava.model.vision_tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _require_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise MachineError(
            f"the disk of {directory} has {free / 1e9:.1f} GB left, the vision features need "
            f"{needed / 1e9:.1f} GB",
            why="they are kept for every image.",
            fix="name a directory on another disk, or train without --cache-features.",
        )
