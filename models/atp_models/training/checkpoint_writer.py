"""Writes a trained checkpoint as a copy of the one it was trained from, whole or not at all.

Weight files are taken over one by one: those that hold nothing new are hard links (or copies,
where links are impossible), so that training modules alone does not rewrite a 7B. In the others
the changed tensors are replaced, under their stored names and in their stored dtype.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from atp_models.atp import FILE_NAME as MODULES
from atp_models.json_files import write_json
from atp_models.tensor_names import canonical_parts
from atp_models.weight_files import find_weights, map_tensors
from atp_runtime.errors import InputError, MachineError

REPORT = "training_report.json"
_INDEX = "model.safetensors.index.json"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf")
_READABLE = 0o644
# What a directory says about its own weights, which the copy's are not.
_OWN = (REPORT, "demo_card.json")


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A new directory that becomes `out` when the body succeeds, and vanishes when it fails.

    Raises:
        InputError: `out` exists and is not an empty directory.
        MachineError: The disk is full or not writable.
    """
    refuse_existing(out)
    # Not of `tempfile`: its directories are closed to other users.
    staging = out.with_name(f".{out.name}.writing-{secrets.token_hex(4)}")
    try:
        staging.mkdir(parents=True)
        yield staging
        if out.exists():
            out.rmdir()
        staging.rename(out)
    except OSError as error:
        raise MachineError(
            f"writing {out} failed ({error.strerror or error})",
            why="the checkpoint was not finished, and nothing of it is left.",
            fix="free space or choose another disk, and run the same command again.",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def refuse_existing(out: Path) -> None:
    """Refuses to write over anything.

    Raises:
        InputError: `out` exists and is not an empty directory.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(
            f"{out} exists",
            why="training never writes over anything.",
            fix="name another directory, or remove this one.",
        )


def copy_checkpoint(source: Path, target: Path, changed: Mapping[str, Tensor]) -> None:
    """Makes `target` a copy of the checkpoint `source` with other weights.

    Args:
        source: A checkpoint.
        target: An empty directory.
        changed: By canonical name, [shape as stored] each; all of them must be in `source`.

    Raises:
        InputError: `source` lacks one of them.
    """
    for file in sorted(source.iterdir()):
        weights = file.suffix in _WEIGHT_SUFFIXES and file.name != MODULES
        index = file.name.endswith(".index.json")
        if file.is_file() and not (weights or index or file.name in _OWN):
            shutil.copyfile(file, target / file.name)
    files = list(find_weights(source))
    _refuse_unknown(files, changed)
    if any(file.suffix != ".safetensors" for file in files) and changed:
        _convert(files, target, changed)
        return
    for file in files:
        stored = _renewed(file, changed)
        if stored is None:
            _link(file, target / file.name)
        else:
            _save(stored, target / file.name)
    for index_file in source.glob("*.index.json"):
        shutil.copyfile(index_file, target / index_file.name)


def _renewed(file: Path, changed: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """All tensors of a weight file by their stored names; None if none of them changed."""
    stored = dict(map_tensors(file))
    news = {name: _new(name, changed) for name in stored}
    if not any(value is not None for value in news.values()):
        return None
    return {
        # Copies: a head that is the embedding is written twice where it was stored twice.
        name: old if (new := news[name]) is None else new.detach().cpu().to(old.dtype, copy=True)
        for name, old in stored.items()
    }


def _new(stored: str, changed: Mapping[str, Tensor]) -> Tensor | None:
    parts = canonical_parts(stored)
    return changed.get(parts[0].name) if len(parts) == 1 else None


def _refuse_unknown(files: list[Path], changed: Mapping[str, Tensor]) -> None:
    stored = [name for file in files for name in map_tensors(file)]
    known = {part.name for name in stored for part in canonical_parts(name)}
    # A head that is the embedding need not be stored.
    lost = sorted(changed.keys() - known - {"lm_head.weight"})
    if lost:
        raise InputError(
            f"the checkpoint holds no {lost[0]}",
            why=f"{len(lost)} trained tensors have no place in its files.",
            fix="save the checkpoint again with Transformers' save_pretrained, and train that.",
        )


def _convert(files: list[Path], target: Path, changed: Mapping[str, Tensor]) -> None:
    """Writes `.bin` files as safetensors."""
    weight_map: dict[str, str] = {}
    total = 0
    for file in files:
        name = file.name.replace("pytorch_model", "model").removesuffix(".bin") + ".safetensors"
        stored = _renewed(file, changed)
        if stored is None:
            stored = dict(map_tensors(file))
        stored = {key: value.clone().contiguous() for key, value in stored.items()}
        _save(stored, target / name)
        weight_map |= dict.fromkeys(stored, name)
        total += sum(value.nbytes for value in stored.values())
    if len(files) > 1:
        write_json(target / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(_READABLE)  # save_file leaves it to its owner alone


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file.resolve(), target)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(file, target)
