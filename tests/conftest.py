"""Bundles that the exporter makes of tiny LLaVAs with random weights, each made once per run.

Everything heavy is imported where it is needed: most tests need neither PyTorch nor a bundle.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pytest

if TYPE_CHECKING:
    from tests.models.quantised.packers import Quantised
    from transformers import LlavaConfig


class Exported(NamedTuple):
    """A checkpoint and the bundle made of it; both are shared, so no test may change them."""

    checkpoint: Path
    bundle: Path


class ExportBundle(Protocol):
    def __call__(
        self,
        config: LlavaConfig,
        *,
        precision: str = "fp32",
        dialect: str = "portable",
        dense: bool = False,
        prune_at: Sequence[int] | None = None,
    ) -> Exported: ...


@pytest.fixture(scope="session")
def export_bundle(tmp_path_factory: pytest.TempPathFactory) -> ExportBundle:
    """Exports a LLaVA of that config with random weights, without the parity check.

    Equal arguments give the same directories, equal configs the same checkpoint.
    """
    checkpoints: dict[str, Path] = {}
    made: dict[tuple[object, ...], Exported] = {}

    def export(
        config: LlavaConfig,
        *,
        precision: str = "fp32",
        dialect: str = "portable",
        dense: bool = False,
        prune_at: Sequence[int] | None = None,
        max_segment_bytes: int | None = None,
    ) -> Exported:
        name = config.to_json_string(use_diff=False)
        layers = None if prune_at is None else tuple(prune_at)
        key = (name, precision, dialect, dense, layers, max_segment_bytes)
        if key not in made:
            if name not in checkpoints:
                checkpoints[name] = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), config)
            bundle = tmp_path_factory.mktemp("exported") / "bundle"
            options = {
                "precision": precision,
                "dialect": dialect,
                "dense": dense,
                "max_segment_bytes": max_segment_bytes,
            }
            write_bundle(checkpoints[name], bundle, prune_at=layers, **options)
            made[key] = Exported(checkpoints[name], bundle)
        return made[key]

    return export


@pytest.fixture(scope="session")
def tiny(export_bundle: ExportBundle) -> Exported:
    """4 layers, pruned before layers 1, 2 and 3; fp32, portable; 16 visual tokens per image."""
    from atp_models.random_configs import tiny_config

    return export_bundle(tiny_config())


@pytest.fixture(scope="session")
def tiny_bundle(tiny: Exported) -> Path:
    """The bundle of `tiny`."""
    return tiny.bundle


@pytest.fixture(scope="session")
def routed(tiny: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `tiny` with routers: a quarter of an image goes through layers 1 and 3."""
    import json

    from tests.routers import with_routers

    trained = with_routers(tiny.checkpoint, tmp_path_factory.mktemp("routed") / "trained", (1, 3))
    config = {"policy": "videollm_mod", "layers": [1, 3], "ratio": 0.25}
    (trained / "pruning_config.json").write_text(json.dumps(config))
    bundle = tmp_path_factory.mktemp("routed") / "bundle"
    write_bundle(trained, bundle, precision="fp32", dialect="portable")
    return bundle


@pytest.fixture(scope="session")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Quantised]:
    """A LLaVA of 2 layers, its decoder quantised by one of `packers.TOOLS`; shared."""
    from tests.models.quantised.packers import TOOLS, quantise

    from atp_models.random_configs import tiny_config

    made: dict[str, Quantised] = {}
    source = write_checkpoint(
        tmp_path_factory.mktemp("checkpoint"), tiny_config(kv_heads=2, layers=2)
    )

    def make(tool: str) -> Quantised:
        if tool not in made:
            made[tool] = quantise(source, tmp_path_factory.mktemp("quantised"), TOOLS[tool])
        return made[tool]

    return make


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three PNG photos of different content and shape."""
    import numpy as np
    from PIL import Image

    directory = tmp_path_factory.mktemp("photos")
    paths = []
    for number, (height, width) in enumerate([(48, 64), (70, 40), (32, 32)]):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        paths.append(directory / f"photo-{number}.png")
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def write_checkpoint(directory: Path, config: LlavaConfig) -> Path:
    from atp_models.random_checkpoint import write_random_checkpoint

    write_random_checkpoint(directory, config)
    return directory


def write_bundle(checkpoint: Path, bundle: Path, **options: Any) -> None:
    """Exports without the parity check; `options` are those of `ExportOptions`."""
    from atp_export.job import ExportOptions, prepare_job
    from atp_export.manifest_writer import write_manifest
    from atp_export.progress import QuietReporter
    from atp_export.stage_writer import StageWriter
    from atp_export.workspace import Workspace

    job = prepare_job(checkpoint, bundle, ExportOptions(**options))
    with Workspace(bundle, job.key()).open() as workspace:
        StageWriter(job, workspace, QuietReporter()).write_all()
        write_manifest(job, workspace)
        workspace.publish()
