"""Whether the parts of a manifest fit together, beyond the types of its fields."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from atp_runtime.errors import InputError

if TYPE_CHECKING:
    from atp_runtime.manifest import Manifest

REBUILD = "export the bundle again with atp-export."


def check_version(value: Any, path: Path, format_: str, wanted: int) -> None:
    """Refuses what is no manifest, or one of another schema.

    Args:
        value: The JSON that was read.
        path: Its file, for messages.
        format_: What its field `format` must be.
        wanted: What its `schema_version` must be.

    Raises:
        InputError: It is another.
    """
    if not isinstance(value, dict) or value.get("format") != format_:
        raise InputError(
            f"{path}: not a manifest of an {format_}",
            why=f"its `format` field must be {format_!r}.",
            fix="point to the directory that atp-export wrote.",
        )
    version = value.get("schema_version")
    if version != wanted:
        raise InputError(
            f"{path}: schema version {version!r}",
            why=f"this runtime reads version {wanted}.",
            fix="install the atp-llava that wrote the bundle, or export it again.",
        )


def check_parts(manifest: Manifest, path: Path) -> None:
    """Refuses a manifest whose paths leave the bundle, or whose parts contradict each other.

    Args:
        manifest: As it was read.
        path: Its file, for messages.

    Raises:
        InputError: What is wrong.
    """
    _check_paths(manifest, path)
    _check_segments(manifest, path)
    _check_heads(manifest, path)
    _check_dialects(manifest, path)


def _check_paths(manifest: Manifest, path: Path) -> None:
    referred = [manifest.embedding.file, *manifest.files]
    referred += [manifest.pruning_weights] if manifest.pruning_weights else []
    for stage in manifest.stages:
        referred += [stage.graph, *stage.other_graphs.values(), *stage.data]
    for name in [*referred, manifest.processor]:
        parts = PurePosixPath(name).parts
        unsafe = not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name
        if unsafe:
            raise InputError(
                f"{path}: path {name!r}",
                why="a manifest may only name files inside its bundle.",
                fix=f"do not use this bundle; {REBUILD}",
            )
    missing = sorted(set(referred) - set(manifest.files))
    if missing:
        raise InputError(
            f"{path}: {missing[0]!r} has no entry in `files`",
            why="a file without a recorded hash cannot be trusted.",
            fix=REBUILD,
        )


def _check_segments(manifest: Manifest, path: Path) -> None:
    expected = 0
    for stage in manifest.segments:
        first, last = stage.layers
        if first != expected or last <= first:
            raise InputError(
                f"{path}: {stage.name} covers layers {first} to {last}",
                why=f"segments must follow one another; layer {expected} is next.",
                fix=REBUILD,
            )
        if stage.pruning and stage.pruning.before_layer != last:
            raise InputError(
                f"{path}: {stage.name} prunes before layer {stage.pruning.before_layer}",
                why=f"the segment ends at layer {last}.",
                fix=REBUILD,
            )
        expected = last
    _check_routed(manifest, path)
    if expected != manifest.text.layers:
        raise InputError(
            f"{path}: segments end at layer {expected}",
            why=f"the model has {manifest.text.layers} layers.",
            fix=REBUILD,
        )


def _check_routed(manifest: Manifest, path: Path) -> None:
    segments = manifest.segments
    for before, stage in zip((None, *segments), segments, strict=False):
        point = before.pruning if before is not None else None
        returns = point is not None and point.returns
        if returns != stage.routed or (returns and stage.layers[1] != stage.layers[0] + 1):
            raise InputError(
                f"{path}: {stage.name} {'does not let' if returns else 'lets'} tokens skip it",
                why=f"the point before layer {stage.layers[0]} says otherwise, and a segment that "
                "is skipped is a single layer.",
                fix=REBUILD,
            )


def _check_heads(manifest: Manifest, path: Path) -> None:
    rows = [stage.outputs[0].shape[-1] for stage in manifest.heads if stage.outputs]
    if sum(row for row in rows if isinstance(row, int)) != manifest.text.vocabulary:
        raise InputError(
            f"{path}: its heads give {' + '.join(map(str, rows)) or 'no'} logits",
            why=f"the vocabulary has {manifest.text.vocabulary} tokens.",
            fix=REBUILD,
        )


def _check_dialects(manifest: Manifest, path: Path) -> None:
    for stage in manifest.stages:
        if stage.other_graphs.keys() != manifest.other_dialects.keys():
            raise InputError(
                f"{path}: {stage.name} has graphs in {', '.join(stage.other_graphs) or 'no'} "
                "other dialects",
                why=f"the bundle's are {', '.join(manifest.other_dialects) or 'none'}.",
                fix=REBUILD,
            )
