from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from atp_export.engines.memory import (
    available_memory,
    forecast_build,
    plan_bytes,
)
from atp_runtime.latency.memory import BUILD_FACTOR, RUNTIME_BYTES
from atp_runtime.manifest import FileRecord, Manifest


def weighing(manifest: Manifest, **sizes: int) -> Manifest:
    files = {f"onnx/{stage}.data": FileRecord(size, "") for stage, size in sizes.items()}
    return replace(manifest, files={**manifest.files, **files})


def test_a_build_needs_a_multiple_of_its_weights(make_manifest: Callable[..., Manifest]) -> None:
    manifest = weighing(make_manifest(), segment_0=10**9, head=10**6)
    needed = BUILD_FACTOR * 10**9 + RUNTIME_BYTES
    by_name = {it.stage: it for it in forecast_build(manifest, needed - 1).stages}
    assert by_name["segment_0"].weight_bytes == 10**9
    assert by_name["segment_0"].build_bytes == needed
    assert not by_name["segment_0"].fits
    assert by_name["head"].fits
    assert all(stage.fits for stage in forecast_build(manifest, needed).stages)


def test_weights_in_several_files_are_all_counted(make_manifest: Callable[..., Manifest]) -> None:
    manifest = weighing(make_manifest(), head=10**6)
    head = manifest.stage("head")
    tied = replace(head, data=(*head.data, "onnx/embed_tokens.npy"))
    stages = tuple(tied if stage.name == "head" else stage for stage in manifest.stages)
    found = forecast_build(replace(manifest, stages=stages), 10**10).stages[-1]
    assert found.weight_bytes == 10**6 + manifest.files["onnx/embed_tokens.npy"].bytes


def test_the_machine_has_memory() -> None:
    assert 10**7 < available_memory() < 10**14


def test_a_plan_is_larger_than_its_weights() -> None:
    assert plan_bytes(0) > 5_500_000  # the largest seen of a tiny stage
    assert plan_bytes(10**9) > 10**9
