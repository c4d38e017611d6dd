"""Whether a bundle can be built and run on a machine: memory, engines, files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.export.doctor.devices import ORIN, rewrite, without_gpu

from atp_export.doctor import Finding, System, examine_bundle
from atp_export.footprint import predict_footprint
from atp_export.plan import make_plan
from atp_models.architecture import read_architecture
from atp_models.checkpoint import Checkpoint
from atp_models.random_configs import tiny_config
from atp_runtime.engine_set import (
    FORMAT,
    SCHEMA_VERSION,
    AxisRange,
    Engine,
    EngineProfile,
    EngineSet,
    Target,
    dump_engine_set,
    read_engine_set,
)
from atp_runtime.errors import InputError
from atp_runtime.latency.memory import (
    BUILD_FACTOR,
    RUNTIME_BYTES,
    build_bytes,
    run_needs,
    weight_bytes,
)
from atp_runtime.manifest import MANIFEST_NAME, FileRecord, Manifest, dump_manifest, read_manifest

HERE = Target("tensorrt", "10.3.0", ORIN.sm, ORIN.name)
STAGES = ["vision", "segment_0", "segment_1", "segment_2", "segment_3", "head"]
PLAN = b"a plan"
SCRATCH = 7_000_000


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def findings(bundle: Path, system: System) -> dict[str, Finding]:
    return {it.subject: it for it in examine_bundle(bundle, system)}


def write_engines(bundle: Path, target: Target = HERE) -> Path:
    """Engines of all stages, as `atp-export engines` records them; returns their directory."""
    manifest, directory = read_manifest(bundle), bundle / target.directory
    directory.mkdir(parents=True)
    engines = {}
    for stage in manifest.stages:
        (directory / f"{stage.name}.plan").write_bytes(PLAN)
        engines[stage.name] = Engine(
            file=f"{stage.name}.plan",
            record=FileRecord(len(PLAN), "0" * 64),
            stamp="stamp",
            profiles=(EngineProfile("prefill", {"tokens": AxisRange(1, 2, 3)}),),
            layers=1,
            scratch_bytes=SCRATCH,
            seconds=1.0,
            sources={name: manifest.files[name].sha256 for name in (stage.graph, *stage.data)},
        )
    write_set(directory, EngineSet(FORMAT, SCHEMA_VERSION, target, manifest.dialect, engines))
    return directory


def write_set(directory: Path, engines: EngineSet) -> None:
    (directory / "engines.json").write_text(dump_engine_set(engines))


def give_memory(system: System, count: int, swap: int = 0) -> None:
    """Leaves so many bytes of memory and of swap on a disk."""
    rewrite(system, "proc/meminfo", f"MemTotal: 8000000 kB\nMemAvailable: {count // 1024} kB\n")
    head = "Filename Type Size Used Priority\n/dev/zram0 partition 99999999 0 5\n"
    rewrite(system, "proc/swaps", f"{head}/swapfile file {swap // 1024} 0 -2\n")


def memory_for(manifest: Manifest, stage: str) -> int:
    return build_bytes(weight_bytes(manifest, manifest.stage(stage)))


def test_what_is_no_bundle_is_refused(orin_nano: System, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest\.json"):
        examine_bundle(tmp_path, orin_nano)


def test_a_bundle_without_engines_is_told_what_building_takes(
    orin_nano: System, bundle: Path
) -> None:
    found = findings(bundle, orin_nano)
    assert found["engines"].ok is False
    assert found["engines"].found == "none for TensorRT 10.3.0 on Orin (SM 8.7)"
    assert "atp-export engines BUNDLE" in found["engines"].fix
    assert [name for name in found if name in STAGES] == STAGES
    for name in STAGES:
        assert found[name].ok
        assert found[name].found.startswith("no engine yet; building takes about 63")
        assert found[name].found.endswith(" MB of 5.7 GB available")
    assert found["room for engines"].ok
    assert found["running"].ok


def test_fresh_engines_are_told_with_their_size(orin_nano: System, bundle: Path) -> None:
    write_engines(bundle)
    found = findings(bundle, orin_nano)
    assert (found["engines"].ok, found["engines"].found) == (
        True,
        "all for TensorRT 10.3.0 on Orin (SM 8.7)",
    )
    assert all(found[name].found.startswith("engine of 0 MB is there") for name in STAGES)
    assert "room for engines" not in found
    assert " scratch 7 MB, " in found["running"].found


def test_engines_for_another_machine_do_not_count_but_are_told(
    orin_nano: System, bundle: Path
) -> None:
    write_engines(bundle, replace(HERE, version="10.16.1.11"))
    found = findings(bundle, orin_nano)["engines"]
    assert found.ok is False
    assert found.found == (
        "none for TensorRT 10.3.0 on Orin (SM 8.7); "
        "there are some for TensorRT 10.16.1.11 on Orin (SM 8.7)"
    )


def damage_plan(directory: Path, engines: EngineSet) -> EngineSet:
    (directory / "segment_1.plan").write_bytes(PLAN[:-1])
    return engines


def remove_plan(directory: Path, engines: EngineSet) -> EngineSet:
    (directory / "segment_1.plan").unlink()
    return engines


def forget(directory: Path, engines: EngineSet) -> EngineSet:
    left = {name: engine for name, engine in engines.engines.items() if name != "segment_1"}
    return replace(engines, engines=left)


def outdate(directory: Path, engines: EngineSet) -> EngineSet:
    old = engines.engines["segment_1"]
    sources = dict.fromkeys(old.sources, "1" * 64)
    return replace(engines, engines={**engines.engines, "segment_1": replace(old, sources=sources)})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (damage_plan, "the engine's file is missing or incomplete; building takes"),
        (remove_plan, "the engine's file is missing or incomplete; building takes"),
        (forget, "no engine yet; building takes"),
        (outdate, "the engine is of another onnx/segment_1.onnx; building takes"),
    ],
)
def test_one_engine_that_cannot_be_used_is_named(
    orin_nano: System,
    bundle: Path,
    change: Callable[[Path, EngineSet], EngineSet],
    problem: str,
) -> None:
    directory = write_engines(bundle)
    write_set(directory, change(directory, read_engine_set(directory)))
    found = findings(bundle, orin_nano)
    assert found["engines"].ok is False
    assert found["engines"].found == "not segment_1 for TensorRT 10.3.0 on Orin (SM 8.7)"
    assert found["segment_1"].found.startswith(problem)
    assert found["segment_0"].found.startswith("engine of ")


def test_a_list_of_engines_that_is_malformed_is_a_finding(orin_nano: System, bundle: Path) -> None:
    (write_engines(bundle) / "engines.json").write_text("{")
    found = findings(bundle, orin_nano)["engines"]
    assert found.ok is False
    assert "engines.json" in found.found
    assert "atp-export engines BUNDLE" in found.fix


@pytest.mark.parametrize("lacking", ["a GPU", "TensorRT"])
def test_a_jetson_that_can_run_no_engine_is_told_why(
    orin_nano: System, bundle: Path, lacking: str
) -> None:
    write_engines(bundle)
    crippled = without_gpu(orin_nano)
    if lacking == "TensorRT":
        crippled = replace(orin_nano, version=lambda _: None)
    found = findings(bundle, crippled)["engines"]
    assert found.ok is False
    reason = {"a GPU": "libcuda.so.1", "TensorRT": "Python module is not installed"}[lacking]
    assert reason in found.found
    assert "there are some for TensorRT 10.3.0 on Orin (SM 8.7)" in found.found


def test_a_machine_without_a_gpu_is_not_blamed(
    make_system: Callable[[Mapping[str, str]], System], bundle: Path
) -> None:
    files = {"proc/meminfo": "MemAvailable: 8000000 kB\n"}
    found = findings(bundle, without_gpu(make_system(files)))
    assert found["engines"].ok is None
    assert not [it for it in found.values() if it.ok is False]


# Memory


def test_a_stage_that_does_not_fit_is_told_how_it_would(
    orin_nano: System, export_bundle: Callable[..., Any], tmp_path: Path
) -> None:
    manifest = read_manifest(export_bundle(tiny_config(), dense=True).bundle)
    large = FileRecord(4 * 10**9, "0" * 64)  # four layers
    files = {**manifest.files, manifest.stage("segment_0").data[0]: large}
    (tmp_path / MANIFEST_NAME).write_text(dump_manifest(replace(manifest, files=files)))
    give_memory(orin_nano, RUNTIME_BYTES + BUILD_FACTOR * 1_500_100_000)
    found = findings(tmp_path, orin_nano)["segment_0"]
    assert found.ok is False
    assert "--max-segment-bytes 1500MB" in found.fix


def test_a_single_layer_that_does_not_fit_cannot_be_cut(orin_nano: System, bundle: Path) -> None:
    give_memory(orin_nano, memory_for(read_manifest(bundle), "segment_0") - 4096)
    found = findings(bundle, orin_nano)
    for name in ("segment_0", "vision"):
        assert found[name].ok is False
        assert "--max-segment-bytes" not in found[name].fix
        assert "do without a desktop" in found[name].fix


@pytest.mark.parametrize(("swap", "ok"), [(0, False), (1 << 20, None)])
def test_swap_on_a_disk_may_help_building_and_zram_does_not(
    orin_nano: System, bundle: Path, swap: int, ok: bool | None
) -> None:
    give_memory(orin_nano, memory_for(read_manifest(bundle), "segment_0") - 8192, swap)
    assert findings(bundle, orin_nano)["segment_0"].ok is ok


def test_running_out_of_memory_is_told_with_what_helps(orin_nano: System, bundle: Path) -> None:
    needs = run_needs(read_manifest(bundle))
    give_memory(orin_nano, needs.total + 4096, 1 << 30)
    assert findings(bundle, orin_nano)["running"].ok
    give_memory(orin_nano, needs.total - 4096, 1 << 30)
    found = findings(bundle, orin_nano)["running"]
    assert found.ok is False
    assert "--max-tokens" in found.fix
    assert "Swap does not help" in found.fix


def test_memory_that_cannot_be_told_is_a_finding_of_every_stage(
    orin_nano: System, bundle: Path
) -> None:
    (orin_nano.root / "proc/meminfo").unlink()
    found = findings(bundle, orin_nano)
    assert all(found[name].ok is None for name in (*STAGES, "running"))


def test_running_needs_what_the_exporter_predicts(tiny: Any) -> None:
    spec = read_architecture(Checkpoint.open(tiny.checkpoint))
    plan = make_plan(spec, precision="fp32", dialect="portable", cut_at=(1, 2, 3))
    predicted = predict_footprint(plan)
    needs = run_needs(read_manifest(tiny.bundle))
    assert needs.caches == predicted.cache_bytes_per_token * needs.tokens
    weights = predicted.embedding_bytes + sum(stage.weight_bytes for stage in predicted.stages)
    assert predicted.run_peak - weights == needs.caches + needs.scratch + needs.runtime


def test_built_engines_are_counted_in_place_of_the_graphs(tiny_bundle: Path) -> None:
    engine = Engine("a.plan", FileRecord(1000, ""), "", (), 1, SCRATCH, 1.0, {})
    small = replace(engine, scratch_bytes=5)
    needs = run_needs(read_manifest(tiny_bundle), (engine, small))
    assert (needs.weights, needs.scratch) == (2000, SCRATCH)


# Files


def test_files_are_counted_by_their_sizes(orin_nano: System, bundle: Path) -> None:
    assert findings(bundle, orin_nano)["files"].ok
    (bundle / "onnx/segment_1.data").write_bytes(b"cut short")
    (bundle / "onnx/head.data").unlink()
    found = findings(bundle, orin_nano)["files"]
    assert found.ok is False
    assert found.found.startswith("2 of ")
