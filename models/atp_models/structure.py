"""Where a checkpoint says how visual tokens are to be spared work (YOPO, arXiv 2410.06169).

The `structure` section of `pruning_config.json` says so in this project's words. The authors'
checkpoints say it in `config.json` in theirs: `attncut_w`, `headcut_num`, `layercut_num`,
`mlpcut_ratio` and `sprompt_len`, read as their code reads them. `headcut_num` is the name of a file
of that code's repository, which belongs beside the weights: `headmask/headmask_7b_24.npy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from atp_models.json_files import read_json
from atp_models.pruning_config import FILE_NAME, STRUCTURE
from atp_models.text_spec import TextSpec
from atp_runtime.errors import InputError
from atp_runtime.schema import from_json
from atp_runtime.structure import DROPPED, KEPT, Structure

_WINDOW, _HEADS, _LAYERS, _RATIO = "attncut_w", "headcut_num", "layercut_num", "mlpcut_ratio"
_AUTHORS = (_WINDOW, _HEADS, _LAYERS, _RATIO)
# Of the authors' repository; the number is that of heads kept on average.
_HEAD_FILES = {
    16: "headmask/headmask_7b_16.npy",
    24: "headmask/headmask_7b_24.npy",
    20: "headmask/headmask_13b_20.npy",
    30: "headmask/headmask_13b_30.npy",
}
_FIX = "correct it, or remove it; see docs/policies.md."


def read_structure(
    config: Mapping[str, Any], pruning: Mapping[str, Any], checkpoint: Path
) -> Structure | None:
    """What a checkpoint says; None if it says nothing.

    Args:
        config: Its `config.json`.
        pruning: Its `pruning_config.json`, or nothing.
        checkpoint: Its directory.

    Raises:
        InputError: It is malformed, or names a file that cannot be read.
    """
    if STRUCTURE in pruning:
        source = f"{checkpoint / FILE_NAME}: {STRUCTURE}"
        return make_structure(pruning[STRUCTURE], checkpoint, source)
    text = config.get("text_config")
    merged = {**(text if isinstance(text, dict) else {}), **config}
    given = {name: merged[name] for name in _AUTHORS if name in merged}
    return _of_authors(given, checkpoint) if given else None


def make_structure(settings: Any, beside: Path, source: str) -> Structure:
    """A structure from JSON values.

    Args:
        settings: The fields of `Structure`. `heads` may also be rows of booleans, or a file with
            them, `.npy` or `.json`.
        beside: The directory that a file's name is relative to.
        source: Where the settings come from, for messages.

    Raises:
        InputError: A field is unknown or makes no sense, or the file cannot be read.
    """
    if isinstance(settings, Mapping) and settings.get("heads") is not None:
        given = settings["heads"]
        rows = _read_rows(beside / given) if isinstance(given, str) else given
        settings = {**settings, "heads": _as_strings(rows, source)}
    return from_json(Structure, settings, source=source, fix=_FIX)


def check_structure(structure: Structure, text: TextSpec) -> None:
    """Refuses a structure that a decoder cannot have.

    Raises:
        InputError: The cut lies outside the decoder, the heads are another model's, or the
            feed-forward's channels cannot be divided so.
    """
    cut, ratio = structure.cut_layer, structure.ffn_ratio
    if cut is not None and not 1 <= cut < text.layers:
        raise InputError(
            f"cut_layer {cut}",
            why=f"visual tokens can leave before layers 1 to {text.layers - 1} of {text.layers}.",
            fix="name one of these, or null for never.",
        )
    if text.intermediate % ratio:
        raise InputError(
            f"ffn_ratio {ratio}",
            why=f"the feed-forward's {text.intermediate} channels are no multiple of it.",
            fix="choose a divisor.",
        )
    if structure.heads is not None:
        _check_heads(structure.heads, text)


def _check_heads(rows: tuple[str, ...], text: TextSpec) -> None:
    widths = {len(row) for row in rows}
    if len(rows) != text.layers or widths != {text.heads}:
        found = " or ".join(map(str, sorted(widths))) or "no"
        raise InputError(
            f"heads of {len(rows)} layers with {found} heads each",
            why=f"the decoder has {text.layers} layers with {text.heads}: this is another model's.",
            fix="give the file that was made for this model.",
        )
    group = text.heads // text.kv_heads
    for layer, row in enumerate(rows):
        for first in range(0, text.heads, group):
            if len(set(row[first : first + group])) > 1:
                raise InputError(
                    f"heads {first} to {first + group - 1} of layer {layer} are kept in part",
                    why="they share keys and values, and what a dropped head spares is its values.",
                    fix="keep or drop them together.",
                )


def _of_authors(given: Mapping[str, Any], checkpoint: Path) -> Structure:
    file = checkpoint / "config.json"
    missing = [name for name in _AUTHORS if name not in given]
    if missing:
        raise InputError(
            f"{file}: {', '.join(given)} without {missing[0]}",
            why="YOPO's authors always give all four.",
            fix="add it, or say it all in the structure section of pruning_config.json.",
        )
    number = given[_HEADS]
    if number not in _HEAD_FILES:
        known = ", ".join(map(str, sorted(_HEAD_FILES)))
        raise InputError(
            f"{file}: {_HEADS} {number!r}",
            why=f"the authors' code knows {known}, each the name of a file.",
            fix="name the file itself in the structure section of pruning_config.json.",
        )
    settings = {
        "window": given[_WINDOW],
        "heads": _HEAD_FILES[number],
        "ffn_ratio": given[_RATIO],
        "cut_layer": given[_LAYERS],
    }
    return make_structure(settings, checkpoint, str(file))


def _read_rows(file: Path) -> Any:
    """Rows of booleans from a file."""
    try:
        if file.suffix == ".json":
            return read_json(file)["heads"]
        rows = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise InputError(
            f"{file}: {error}",
            why="it must hold booleans [layers, heads]: a .npy array, or `heads` in .json.",
            fix="copy it beside the weights; atp_models.structure says where authors' files go.",
        ) from error
    return rows.tolist() if rows.ndim == 2 and rows.dtype == np.bool_ else rows


def _as_strings(rows: Any, source: str) -> list[str]:
    if isinstance(rows, list) and all(isinstance(row, str) for row in rows):
        return rows
    if isinstance(rows, list) and all(
        isinstance(row, list) and all(isinstance(mark, bool) for mark in row) for row in rows
    ):
        return ["".join(KEPT if mark else DROPPED for mark in row) for row in rows]
    raise InputError(
        f"{source}: heads are no rows of booleans",
        why="each layer needs one per head: true is kept.",
        fix="give a boolean .npy file [layers, heads], or rows of true and false.",
    )
