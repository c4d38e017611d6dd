"""Building a demo checkpoint so that what is in its place is always whole."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from atp_models.demo.disk import disk_failures_explained
from atp_models.demo.fetching import unpack
from atp_models.demo.recipe import CARD, DEMO, Recipe, is_current, read_card, write_card
from atp_models.demo.staging import put_in_place, refuse_foreign, staging
from atp_runtime.errors import MachineError

_PACKAGES = ("gguf", "onnx", "safetensors", "tokenizers", "torch", "transformers")


def build_demo_checkpoint(out_dir: Path, *, cache_dir: Path, report: Callable[[str], None]) -> Path:
    """Make a small real LLaVA of pretrained parts, unless `out_dir` already is one.

    SmolLM2-135M-Instruct answers and a DINOv2 ViT-S/14 at 336 pixels sees (576 visual tokens).
    What was trained to join them and to prune is merged if the package holds it; if not, the
    projector and the pruning modules are untrained. `demo_card.json` in the directory says which.

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
        CheckFailedError: A part has not the pinned hash or not the expected content, or what
            was trained does not fit the parts.
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
    refuse_foreign(place, {CARD, *(read_card(place) or {}).get("files", ())})
    _require_packages()
    # Imported late: it takes seconds, and a finished checkpoint needs none of it.
    from atp_models.demo.assemble import read_trained, write_checkpoint  # noqa: PLC0415

    deltas, training = read_trained(recipe) or (None, None)
    with (
        disk_failures_explained(cache_dir),
        _scratch(cache_dir) as unpacked,
    ):
        gguf_file, onnx_file = (
            unpack(part, unpacked, cache_dir=cache_dir, report=report) for part in recipe.parts
        )
        with disk_failures_explained(place.parent), staging(place) as directory:
            write_checkpoint(
                directory, gguf_file=gguf_file, onnx_file=onnx_file, deltas=deltas, report=report
            )
            write_card(recipe, directory, training)
            put_in_place(directory, place)
    report(f"{out_dir} is complete")
    return out_dir


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
