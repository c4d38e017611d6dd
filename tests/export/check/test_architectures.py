"""The bar: TensorRT-RTX takes every graph of every kind of LLaVA that is supported.

Both dialects, FP16 and INT8, with all profiles. What a graph is made of depends on the kind and
on nothing that is learnt, so that models with random weights stand for trained ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import write_bundle
from tests.export.kinds import KINDS

from atp_export.check.acceptance import check_bundle
from atp_export.engines.options import EngineOptions
from atp_export.progress import QuietReporter
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import named_config, tiny_config
from atp_runtime.bundle import Bundle

pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this platform")

pytestmark = pytest.mark.slow

SEGMENTS = ["segment_0", "segment_1"]
WITHOUT_LINEAR_LAYERS = "no tower layer"


@pytest.mark.parametrize("kind", KINDS)
def test_every_graph_becomes_an_engine_kind_by_kind(export_bundle: Any, kind: str) -> None:
    config = tiny_config(**KINDS[kind])
    made = export_bundle(config, precision="fp16", dialect="both", prune_at=(2,))

    check_all(made.bundle, in_int8=SEGMENTS if kind == WITHOUT_LINEAR_LAYERS else None)


@pytest.fixture
def seven_billion(tmp_path: Path) -> Iterator[Path]:
    """A bundle of LLaVA-1.5-7B's width, gone after the test: it takes gigabytes.

    Two decoder layers in a segment each; the other thirty are as they are.
    """
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    config = named_config("7b")
    config.text_config.num_hidden_layers = 2
    write_random_checkpoint(checkpoint, config, dtype=torch.float16)
    write_bundle(checkpoint, bundle, precision="fp16", dialect="both", dense=False, prune_at=(1,))
    shutil.rmtree(checkpoint)
    yield bundle
    shutil.rmtree(bundle)


def test_every_graph_of_llava_1_5_7b_becomes_an_engine(seven_billion: Path) -> None:
    check_all(seven_billion)


def check_all(path: Path, *, in_int8: list[str] | None = None) -> None:
    found = check_bundle(Bundle.open(path), EngineOptions(), QuietReporter())

    quantised = in_int8 or ["vision", *SEGMENTS]
    assert [(v.dialect, v.precision, v.stage) for v in found.verdicts] == [
        (dialect, precision, stage)
        for dialect in ("portable", "native")
        for precision, stages in (("fp16", ["vision", *SEGMENTS, "head"]), ("int8", quantised))
        for stage in stages
    ]
    assert {v.stage: v.problem for v in found.verdicts if not v.accepted} == {}
    assert found.lint == {}
    assert found.passed
