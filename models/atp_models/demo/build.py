"""Building a demo checkpoint so that what is in its place is always whole."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from atp_models.demo.disk import disk_failures_explained
from atp_models.demo.parts import unpack
from atp_models.demo.recipe import CARD, DEMO, Recipe, is_current, read_card, write_card
from atp_runtime.errors import InputError, MachineError

_PACKAGES = ("gguf", "onnx", "safetensors", "tokenizers", "torch", "transformers")


def build_demo_checkpoint(out_dir: Path, *, cache_dir: Path, report: Callable[[str], None]) -> Path:
    """Make a small real LLaVA of pretrained parts, unless `out_dir` already is one.

    SmolLM2-135M-Instruct answers, a DINOv2 ViT-S/14 at 336 pixels sees (576 visual tokens),
    and the projector between them is untrained: `demo_card.json` in the directory says so.

    Args:
        out_dir: Directory of the checkpoint, in the layout of Transformers'
            `LlavaForConditionalGeneration`. It appears whole or not at all.
        cache_dir: Where the downloaded packages are kept, 183 MB.
        report: Called with a line of text at every step.

    Returns:
        `out_dir`.

    Raises:
        InputError: `out_dir` holds something that was not built here.
        MachineError: A package, the network or disk space is missing.
        CheckFailedError: A part has not the pinned hash, or not the expected content.
    """
    return build_checkpoint(DEMO, out_dir, cache_dir=cache_dir, report=report)


def build_checkpoint(
    recipe: Recipe, out_dir: Path, *, cache_dir: Path, report: Callable[[str], None]
) -> Path:
    """Make the checkpoint of a recipe; see `build_demo_checkpoint`."""
    place = out_dir.resolve()
    if is_current(recipe, place):
        report(f"{out_dir} is already there and whole: nothing to do")
        return out_dir
    _refuse_foreign(place)
    _require_packages()
    # Imported late: it takes seconds, and a finished checkpoint needs none of it.
    from atp_models.demo.assemble import write_checkpoint  # noqa: PLC0415

    with (
        disk_failures_explained(cache_dir),
        _scratch(cache_dir) as unpacked,
    ):
        gguf_file, onnx_file = (
            unpack(part, unpacked, cache_dir=cache_dir, report=report) for part in recipe.parts
        )
        with disk_failures_explained(place.parent), _staging(place) as staging:
            write_checkpoint(staging, gguf_file=gguf_file, onnx_file=onnx_file, report=report)
            write_card(recipe, staging)
            _put_in_place(staging, place)
    report(f"{out_dir} is complete")
    return out_dir


def _refuse_foreign(place: Path) -> None:
    """Refuse to replace anything that an earlier build did not put there."""
    if not place.exists():
        return
    if not place.is_dir():
        raise InputError(
            f"{place} is not a directory",
            why="a checkpoint is a directory of several files",
            fix="name a directory that does not exist yet",
        )
    card = read_card(place)
    ours = {CARD, *(card or {}).get("files", ())}
    foreign = sorted(path.name for path in place.iterdir() if path.name not in ours)
    if foreign:
        raise InputError(
            f"{place} holds files that no build of the demo put there: {', '.join(foreign[:5])}",
            why="building would replace the whole directory and lose them",
            fix="name another directory, or move those files away",
        )


def _require_packages() -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MachineError(
            f"not installed: {', '.join(missing)}",
            why="the pretrained parts are converted with them",
            fix="pip install 'atp-llava[export,demo]'",
        )


@contextmanager
def _scratch(cache_dir: Path) -> Iterator[Path]:
    """A directory for unpacked parts, gone afterwards."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".unpacked-") as directory:
        yield Path(directory)


@contextmanager
def _staging(place: Path) -> Iterator[Path]:
    """An empty sibling of `place`, removed afterwards if it is still there."""
    # Not a temporary directory of the standard library: those are closed to other users,
    # and this one becomes the checkpoint.
    staging = _sibling(place, "building")
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _sibling(place: Path, purpose: str) -> Path:
    """A hidden path beside `place`, on the same disk, that nobody uses."""
    return place.with_name(f".{place.name}.{purpose}-{secrets.token_hex(4)}")


def _put_in_place(staging: Path, place: Path) -> None:
    """Rename `staging` to `place`, moving an outdated checkpoint out of the way first."""
    if not place.exists():
        staging.rename(place)
        return
    retired = _sibling(place, "retired")
    place.rename(retired)
    staging.rename(place)
    shutil.rmtree(retired)
