"""A bundle seen as if one of its dialects were the only one, so that nothing else can be run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from atp_runtime.bundle import Bundle


def one_dialect(path: Path, dialect: str) -> Bundle:
    """The bundle without the graphs of its other dialects."""
    bundle = Bundle.open(path).in_dialect(dialect)
    stages = tuple(replace(stage, other_graphs={}) for stage in bundle.manifest.stages)
    return replace(bundle, manifest=replace(bundle.manifest, stages=stages, other_dialects={}))
