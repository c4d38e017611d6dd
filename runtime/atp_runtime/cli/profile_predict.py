"""What `atp-profile --predict` does: times and memory on devices that need not be there."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import pairwise

from atp_runtime.backends import open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.cli.command import print_json
from atp_runtime.errors import InputError
from atp_runtime.generation import GenerationOptions
from atp_runtime.latency.device import device_names, read_device
from atp_runtime.latency.forecast import ERROR_BAND, Counts, Forecast, forecast
from atp_runtime.manifest import Manifest, read_manifest
from atp_runtime.schema import to_json
from atp_runtime.session import Session

_ALL = "all"
_TEXT_TOKENS = 64
_UNMEASURED = "no engine of this project has been timed on a Jetson yet"


def predict(options: argparse.Namespace) -> int:
    """Predicts; returns the exit code."""
    names = device_names() if options.predict == _ALL else (options.predict,)
    devices = [read_device(name) for name in names]
    manifest = read_manifest(options.bundle)
    counts = _counts(options, manifest)
    found = {
        mode: [forecast(manifest, device, count) for device in devices]
        for mode, count in counts.items()
    }
    if options.json:
        print_json({"error_band": ERROR_BAND, "counts": to_json(counts), **to_json(found)})
    else:
        print("\n".join(_lines(counts, found)))
    return 0


def _counts(options: argparse.Namespace, manifest: Manifest) -> dict[str, Counts]:
    """The prompt unpruned and, where that is known, pruned."""
    points = sum(stage.pruning is not None for stage in manifest.segments)
    whole = manifest.vision.most_tokens
    if options.data or options.tokens:
        raise InputError(
            "--predict with --data or --tokens",
            why="it is for one prompt, of which nothing is measured.",
            fix="give --image and --prompt, whose tokens are counted here, or --keep.",
        )
    if options.image or options.prompt:
        return _asked(options, points)
    dense = Counts(1, _TEXT_TOKENS, (whole,) * points)
    if options.keep is None:
        return {"dense": dense}
    keep = options.keep
    if len(keep) != points or any(b > a for a, b in pairwise((whole, *keep, 0))):
        raise InputError(
            f"--keep {','.join(map(str, keep))}",
            why=f"the bundle has {points} pruning points, and each keeps a part of what is left of "
            f"{whole} tokens.",
            fix="give as many counts, none above the one before it.",
        )
    return {"dense": dense, "pruned": Counts(1, _TEXT_TOKENS, keep)}


def _asked(options: argparse.Namespace, points: int) -> dict[str, Counts]:
    """Asks the bundle here, on the CPU: which tokens stay is the same on every device."""
    if options.keep is not None:
        raise InputError(
            "--keep with --image or --prompt",
            why="the question itself tells what is kept.",
            fix="leave one of them away.",
        )
    with Session(Bundle.open(options.bundle), open_backend(threads=options.threads)) as session:
        answer = session.ask(
            options.prompt or options.usual_prompt,
            options.image,
            GenerationOptions(max_new_tokens=1),
        )
    told = answer.statistics
    text, images = told.prompt_tokens - told.visual_tokens, len(options.image)
    dense = Counts(images, text, (told.visual_tokens,) * points)
    kept = tuple(point.kept for point in told.points)
    return {"dense": dense, "pruned": Counts(images, text, kept)} if kept else {"dense": dense}


def _lines(counts: dict[str, Counts], found: dict[str, list[Forecast]]) -> Iterator[str]:
    for mode, count in counts.items():
        kept = ", ".join(map(str, count.kept)) or "all"
        yield f"{mode}: {count.images} image(s), {count.text} tokens of text, kept {kept}"
    modes = list(counts)
    columns = "".join(f"{mode + ' ms':>12}{'tokens/s':>10}" for mode in modes)
    yield f"\n{'':<34}{columns}{'runs in':>14}{'builds in':>14}"
    for rows in zip(*found.values(), strict=True):
        yield _row(rows)
    yield f"\ntimes may be off by {100 * ERROR_BAND:.0f} %; {_UNMEASURED}"


def _row(rows: Sequence[Forecast]) -> str:
    cells = "".join(
        f"{1e3 * it.first_token_seconds:>12.0f}{it.tokens_per_second:>10.1f}" for it in rows
    )
    first = rows[0]
    run, build = (
        f"{size / 2**30:.1f} GiB{'' if fits else ', no'}"
        for size, fits in ((first.run_bytes, first.runs), (first.build_bytes, first.builds))
    )
    return f"{first.device:<34}{cells}{run:>14}{build:>14}"
