"""What layers of TensorRT engines take, and the files that NVIDIA's viewers read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.backends.host_device import HostDevice
from tests.runtime.backends.host_engines import HostLibrary, write_engines

from atp_runtime.backends import cuda_device, tensorrt_engine
from atp_runtime.backends.engine_library import LayerTime
from atp_runtime.backends.layer_log import EngineLayers
from atp_runtime.cli.profile import main as atp_profile
from atp_runtime.profiling import measure
from atp_runtime.profiling.layer_files import is_detailed, layer_files, layer_times
from atp_runtime.profiling.layers import ANSWERS
from atp_runtime.profiling.profile_file import read_profile

NEW_TOKENS = 3
STAGES = ("vision", "segment_0", "segment_1", "segment_2", "head")
DECODED = STAGES[1:4]


@pytest.fixture
def built(answering: Path, tmp_path: Path) -> Path:
    """A bundle that can be asked, with engines."""
    root = Path(shutil.copytree(answering, tmp_path / "built"))
    write_engines(root, longest=256)
    return root


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU and TensorRT, both on host memory."""
    monkeypatch.setattr(cuda_device.CudaDevice, "open", HostDevice)
    monkeypatch.setattr(tensorrt_engine, "open_tensorrt", HostLibrary)
    monkeypatch.setattr(measure, "measure_ceiling", lambda _threads: None)


def profile(bundle: Path, photo: Path, out: Path, *words: str) -> int:
    counts = ("--runs", "1", "--warmup", "0", "--new-tokens", str(NEW_TOKENS))
    asked = ("--image", str(photo), "--backend", "tensorrt", "--output", str(out))
    return atp_profile((str(bundle), *asked, *counts, *words))


def explored(out: Path, name: str) -> tuple[list[str], list[str], int]:
    """A pair of files as trex reads it: layers, records of times, and the number of runs.

    It wants an object with "Layers", objects themselves, and takes for a time what has five fields.
    """
    graph = json.loads((out / f"layers_{name}.json").read_text())
    count, *records = json.loads((out / f"profile_{name}.json").read_text())
    wanted = {"name", "timeMs", "averageMs", "medianMs", "percentage"}
    assert all(record.keys() == wanted for record in records)
    assert sum(record["percentage"] for record in records) == pytest.approx(100)
    layers = [layer["Name"] for layer in graph["Layers"]]
    return layers, [record["name"] for record in records], count["count"]


def test_profiling_engines_writes_the_layers_of_each_beside_the_profile(
    built: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert profile(built, photo, out) == 0
    names = [*STAGES, *(f"{stage}_decode" for stage in DECODED)]
    written = {it.name for it in out.iterdir()} - {"profile.json", "profile.csv", "report.html"}
    assert written == {f"{kind}_{name}.json" for kind in ("layers", "profile") for name in names}
    steps = ANSWERS * (NEW_TOKENS - 1)
    runs = dict.fromkeys(names, ANSWERS) | {f"{stage}_decode": steps for stage in DECODED}
    for name in names:
        layers, timed, count = explored(out, name)
        assert layers == timed
        assert count == (ANSWERS + steps if name == "head" else runs[name])
    assert "[profile 1]" in explored(out, "segment_0_decode")[0][0]
    assert read_profile(out).setting.backend == "tensorrt"
    assert "layers_*.json" in capsys.readouterr().err


def test_engines_that_tell_names_alone_are_pointed_out(
    built: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_engines(built, longest=256, detailed=False)
    assert profile(built, photo, tmp_path / "out") == 0
    assert "build them again: atp-export engines" in capsys.readouterr().err


def test_other_backends_have_no_such_files(answering: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert profile(answering, photo, out, "--backend", "onnxruntime", "--threads", "1") == 0
    assert not list(out.glob("layers_*"))


@given(st.lists(st.lists(st.floats(0.001, 1e3), min_size=3, max_size=3), min_size=1, max_size=5))
def test_times_are_told_by_sum_mean_median_and_share(times: list[list[float]]) -> None:
    names = ("a", "b", "a")  # two layers of one name
    runs = [tuple(map(LayerTime, names, run)) for run in times]
    count, *records = layer_times(runs)
    assert count == {"count": len(times)}
    assert [record["name"] for record in records] == list(names)
    whole = sum(map(sum, times))
    for record, taken in zip(records, zip(*times, strict=True), strict=True):
        assert record["timeMs"] == pytest.approx(sum(taken))
        assert record["averageMs"] == pytest.approx(sum(taken) / len(taken))
        assert record["medianMs"] == pytest.approx(median(taken))
        assert record["percentage"] == pytest.approx(100 * sum(taken) / whole)


def test_layers_without_any_time_have_no_share() -> None:
    assert layer_times([(LayerTime("a", 0.0),)])[1]["percentage"] == 0
    assert layer_times([]) == [{"count": 0}]


def test_what_the_inspector_says_is_written_as_it_is() -> None:
    told = '{"Layers": ["a"], "Bindings": []}'
    engine = EngineLayers("segment_0", "prefill", told)
    assert layer_files([engine])["layers_segment_0.json"] == told
    assert not is_detailed(engine)
