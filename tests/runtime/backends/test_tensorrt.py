"""What the TensorRT backend tells an engine's context, and what its stages compute."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.backends.host_device import HostDevice
from tests.runtime.backends.host_engines import HostLibrary, host_backend, write_engines
from tests.runtime.backends.tensorrt_bench import HIDDEN, KV, SEGMENT, Bench
from tests.runtime.conftest import _segment
from tests.runtime.forced_selection import keep_all

from atp_runtime.backends import open_backend
from atp_runtime.backends.engine_library import EngineError
from atp_runtime.backends.layer_log import LayerLog
from atp_runtime.backends.tensorrt import TensorRtBackend
from atp_runtime.bundle import Bundle
from atp_runtime.chunk import Chunk
from atp_runtime.decoder import SegmentedDecoder
from atp_runtime.errors import InputError, MachineError
from atp_runtime.manifest import Manifest, read_manifest
from atp_runtime.selection import Selection

ROW = 64  # positions whose keys fill a multiple of 256 bytes


# What the context is told


def test_context_is_told_everything_once_and_then_nothing_that_stayed(bench: Bench) -> None:
    inputs, outputs = bench.inputs(4, 3), bench.outputs(4)
    first = {"profile": 1, "scratch": 1, "shape": 9, "address": 14, "run": 1}
    assert bench.told(inputs, outputs) == first
    assert bench.told(inputs, outputs) == {"run": 1}


def test_context_is_told_the_lengths_of_a_past_that_grew_where_it_was(bench: Bench) -> None:
    inputs, outputs = bench.inputs(4, 0), bench.outputs(4)
    blocks = {name: bench.backend.allocate(1 << 14) for name in inputs if "past_key" in name}
    for past in (0, 4):
        grown = {name: it.array((1, past, *KV), "float32") for name, it in blocks.items()}
        told = bench.told(inputs | grown, outputs)
    assert told == {"shape": 2, "run": 1}


def test_context_is_told_every_shape_again_when_the_profile_changes(bench: Bench) -> None:
    prompt, step = bench.inputs(4, 0), bench.inputs(1, 4)
    outputs = bench.outputs(4), bench.outputs(1)
    bench.stage.run(prompt, outputs[0])
    told = bench.told(step, outputs[1])
    assert (told["profile"], told["shape"]) == (1, 9)
    told = bench.told(step, outputs[1])
    assert told == {"run": 1}
    told = bench.told(prompt, outputs[0])
    assert (told["profile"], told["shape"]) == (1, 9)


def test_stage_runs_again_after_a_run_failed(bench: Bench) -> None:
    inputs, outputs = bench.inputs(4, 0), bench.outputs(4)
    bench.library.fault = EngineError("no")
    with pytest.raises(MachineError):
        bench.stage.run(inputs, outputs)
    bench.library.fault = None
    assert bench.told(inputs, outputs) == {"run": 1}
    assert np.isfinite(bench.backend.download(outputs["hidden_states_out"])).all()


# Addresses


def test_arrays_at_any_address_are_read_and_written(bench: Bench) -> None:
    inputs, aligned, shifted = bench.inputs(3, 2), bench.outputs(3), bench.outputs(3, offset=36)
    bench.stage.run(inputs, aligned)
    wide = bench.backend.allocate(1 << 12).array((1, 3, HIDDEN), "float32", 100)
    bench.backend.copy(wide, inputs["hidden_states"])
    copies = bench.device.counts["copy"]
    bench.stage.run(inputs | {"hidden_states": wide}, shifted)
    assert bench.device.counts["copy"] - copies == 1 + len(shifted)
    for name, array in aligned.items():
        found, wanted = bench.backend.download_all(shifted[name], array)
        np.testing.assert_array_equal(found, wanted)


def test_aligned_arrays_are_not_copied(bench: Bench) -> None:
    bench.stage.run(bench.inputs(3, ROW), bench.outputs(3))
    assert bench.device.counts["copy"] == 0


def test_past_without_positions_has_an_address(bench: Bench) -> None:
    outputs = bench.outputs(2)
    bench.stage.run(bench.inputs(2, 0), outputs)
    assert np.isfinite(bench.backend.download(outputs["hidden_states_out"])).all()


# Scratch memory


def test_engines_share_one_scratch_memory_as_large_as_the_largest_wants(bench: Bench) -> None:
    assert bench.backend.scratch.nbytes == bench.engine.scratch_bytes == 3000
    free = bench.device.memory().free
    for name in ("segment_0", "head"):
        bench.backend.load(bench.bundle, bench.bundle.manifest.stage(name))
    assert bench.device.memory().free == free


def test_engine_follows_when_the_scratch_memory_moves(bench: Bench) -> None:
    inputs, outputs = bench.inputs(2, 0), bench.outputs(2)
    bench.stage.run(inputs, outputs)
    bench.engine.scratch_bytes = 9000  # as if a larger stage were loaded now
    bench.backend._provide_scratch(9000)
    assert bench.told(inputs, outputs)["scratch"] == 1


# Layers


def test_timed_runs_are_kept_by_profile_and_give_what_other_runs_give(built: Path) -> None:
    bench, log = Bench.of(built), LayerLog()
    bench.backend.layers = log
    prompt, step = bench.inputs(4, 0), bench.inputs(1, 4)
    outputs = bench.outputs(4), bench.outputs(1)
    for _ in range(2):
        bench.stage.run(prompt, outputs[0])
    bench.stage.run(step, outputs[1])
    assert [(it.stage, it.profile, len(it.runs)) for it in log.engines] == [
        (SEGMENT, "prefill", 2),
        (SEGMENT, "decode", 1),
    ]
    for engine in log.engines:
        described = [layer["Name"] for layer in json.loads(engine.description)["Layers"]]
        assert [layer.name for layer in engine.runs[0]] == described
    bench.backend.layers = None
    other = bench.outputs(4)
    bench.stage.run(prompt, other)
    found = bench.backend.download_all(*(it["hidden_states_out"] for it in (outputs[0], other)))
    np.testing.assert_array_equal(*found)


def test_failure_of_a_timed_run_is_the_machines(bench: Bench) -> None:
    bench.backend.layers, bench.library.fault = LayerLog(), EngineError("Cuda Runtime")
    with pytest.raises(MachineError, match="segment_1: Cuda Runtime"):
        bench.stage.run(bench.inputs(2, 0), bench.outputs(2))
    assert bench.backend.layers.engines == ()


# Whole decoders


def test_stage_is_closed_only_when_nothing_runs(bench: Bench) -> None:
    bench.stage.run(bench.inputs(2, 0), bench.outputs(2))
    bench.stage.close()
    assert bench.engine.closed


def test_decoder_has_no_room_when_an_engine_admits_no_longer_past(own_bundle: Path) -> None:
    write_engines(own_bundle, longest=10)
    backend = TensorRtBackend(HostDevice(), HostLibrary())
    hidden = np.ones((1, 9, HIDDEN), dtype=np.float32)
    with SegmentedDecoder(Bundle.open(own_bundle), backend, 64) as decoder:
        decoder.prefill(hidden, Chunk.text(9), keep_all)
        for past in (9, 10):
            assert decoder.state.lengths[0] == past
            assert decoder.has_room()
            decoder.decode(hidden[:, :1])
        assert not decoder.has_room()
        before = decoder.state
        with pytest.raises(InputError, match="the axis 'past' has length 11"):
            decoder.decode(hidden[:, :1])
        assert decoder.state == before


@pytest.mark.parametrize("integrated", [False, True])
def test_inputs_of_a_segment_are_not_overwritten_when_nothing_is_pruned_behind_it(
    own_bundle: Path, write_files: Callable[[Path, Manifest], None], integrated: bool
) -> None:
    """Nobody waits for its scores, so it has not run yet when those of the next are written."""
    (own_bundle / f"onnx/{SEGMENT}.onnx").unlink()
    plain = _segment(own_bundle, SEGMENT, (2, 3), pruned=False)
    manifest = read_manifest(own_bundle)
    stages = tuple(plain if it.name == SEGMENT else it for it in manifest.stages)
    write_files(own_bundle, replace(manifest, stages=stages))
    write_engines(own_bundle)
    image = np.array([0, 0, 0, -1, -1])
    hidden = np.random.default_rng(0).normal(size=(1, 5, HIDDEN)).astype(np.float32)
    logits = []
    for backend in (open_backend(threads=1), host_backend(integrated=integrated)):
        with SegmentedDecoder(Bundle.open(own_bundle), backend, 64) as decoder:
            result = decoder.prefill(hidden, Chunk(image, image, image), keep_last)
        assert backend.traffic.synchronisations == 2
        logits.append(result.logits)
    np.testing.assert_allclose(*logits, rtol=1e-5)


def keep_last(_point: object, _self: object, _cross: object, _text: bool, visual) -> Selection:
    return Selection(np.arange(len(visual)) == len(visual) - 1)
