"""Decode steps that are recorded, on host memory whose device can capture and replay."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.backends.host_device import HostDevice
from tests.runtime.backends.host_engines import HostLibrary, write_engines

from atp_runtime import decode_step
from atp_runtime.backends.engine_library import EngineError
from atp_runtime.backends.tensorrt import TensorRtBackend
from atp_runtime.bundle import Bundle
from atp_runtime.chunk import Chunk
from atp_runtime.decoder import SegmentedDecoder
from atp_runtime.errors import MachineError
from atp_runtime.selection import Selection

BUCKET, CAPACITY, SEGMENTS, STAGES = 8, 40, 3, 4
IMAGE = np.array([0, 0, 0, 0, -1, -1])

Open = Callable[..., "Bench"]


def keep_half(_point: object, _self: object, _cross: object, _text: bool, visual) -> Selection:
    return Selection(np.arange(len(visual)) % 2 == 0)


@dataclass
class Bench:
    """A decoder whose device counts what it is asked to do."""

    decoder: SegmentedDecoder
    backend: TensorRtBackend
    device: HostDevice
    library: HostLibrary

    def prefill(self, seed: int = 0) -> np.ndarray:
        """6 tokens, of which 6, 4 and 3 reach the segments."""
        self.decoder.reset()
        chunk = Chunk(IMAGE, IMAGE, IMAGE)
        return self.decoder.prefill(hidden_of(seed, 6), chunk, keep_half).logits

    def decode(self, tokens: int) -> list[np.ndarray]:
        return [self.decoder.decode(hidden_of(100 + step, 1)) for step in range(tokens)]

    def counts(self, tokens: int) -> Counter[str]:
        """What the device is asked for by so many more tokens."""
        before = self.device.counts.copy()
        self.decode(tokens)
        return self.device.counts - before

    def contexts(self) -> int:
        """Contexts of all engines, one of which each has anyway."""
        return sum(len(it.contexts) for it in self.library.engines.values()) - STAGES


def hidden_of(seed: int, tokens: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, tokens, 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_step, "BUCKET", BUCKET)


@pytest.fixture(scope="module")
def built(hand_made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(shutil.copytree(hand_made, tmp_path_factory.mktemp("engines") / "hand-made"))
    write_engines(root, longest=96)
    return root


@pytest.fixture
def opened(built: Path) -> Iterator[Open]:
    benches = []

    def make(*, graphs: bool = True, integrated: bool = False, capacity: int = CAPACITY) -> Bench:
        device, library = HostDevice(integrated=integrated), HostLibrary()
        backend = TensorRtBackend(device, library, graphs=graphs)
        decoder = SegmentedDecoder(Bundle.open(built), backend, capacity)
        benches.append(Bench(decoder, backend, device, library))
        return benches[-1]

    yield make
    for bench in benches:
        bench.decoder.close()


def close(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("integrated", [False, True], ids=["own memory", "shared memory"])
def test_logits_are_those_of_steps_that_are_not_recorded(opened: Open, integrated: bool) -> None:
    """Through several buckets of each segment, the last one shorter than the others."""
    benches = [opened(graphs=graphs, integrated=integrated) for graphs in (True, False)]
    for bench in benches:
        bench.prefill()
    close(*(bench.decode(CAPACITY - 6) for bench in benches))
    assert benches[0].decoder.state == benches[1].decoder.state
    assert benches[0].backend.traffic.replays > 0
    assert benches[1].backend.traffic.replays == 0


def test_a_stage_is_recorded_at_the_second_token_of_a_bucket_and_then_replayed(
    opened: Open,
) -> None:
    bench = opened()
    bench.prefill()
    bench.decode(1)  # behind 6 positions in the first segment
    assert bench.device.counts["capture"] == bench.device.counts["launch"] == 0
    runs = Counter({name: it.told["run"] for name, it in bench.library.engines.items()})
    counts = [bench.counts(1) for _ in range(3)]
    # In the end the first segment has come to its second bucket.
    assert [it["capture"] for it in counts] == [STAGES, 0, 0]
    assert [it["launch"] for it in counts] == [STAGES, STAGES, STAGES - 1]
    told = {name: it.told["run"] - runs[name] for name, it in bench.library.engines.items()}
    assert told == {"segment_0": 2, "segment_1": 1, "segment_2": 1, "head": 1}


def test_a_bucket_that_was_recorded_serves_the_next_question(opened: Open) -> None:
    bench = opened()
    bench.prefill(1)
    bench.decode(10)
    bench.prefill(2)
    counts = bench.counts(10)
    assert (counts["capture"], counts["launch"]) == (0, 10 * STAGES)


def test_a_token_costs_one_strided_copy_per_segment_and_the_traffic_of_any_other(
    opened: Open,
) -> None:
    spent = []
    for graphs in (True, False):
        bench = opened(graphs=graphs, capacity=96)
        bench.prefill()
        bench.decode(7)  # no segment comes to a new bucket in the next two
        spent.append(bench.counts(2))
    recorded, direct = spent
    assert recorded["copy_rows"] == 2 * SEGMENTS
    assert recorded["copy"] == recorded["clear_rows"] == 0
    for moved in ("copy_in", "copy_out", "synchronise"):
        assert recorded[moved] == direct[moved] == {"copy_in": 4}.get(moved, 2)


def test_room_behind_the_past_is_cleared_once_per_bucket(opened: Open) -> None:
    bench = opened()
    bench.prefill()
    assert bench.counts(2)["clear_rows"] == SEGMENTS  # 6, 4 and 3 positions
    assert bench.counts(BUCKET)["clear_rows"] == SEGMENTS


def test_nan_of_an_earlier_conversation_does_not_come_back(opened: Open) -> None:
    bench, fresh = opened(), opened()
    bench.decoder.prefill(np.full((1, 20, 8), np.nan, np.float32), Chunk.text(20), keep_half)
    for it in (bench, fresh):
        it.prefill()
    close(*(it.decode(6) for it in (bench, fresh)))


def test_a_rewound_token_does_not_come_back(opened: Open) -> None:
    bench, direct = opened(), opened(graphs=False)
    found = []
    for it in (bench, direct):
        it.prefill()
        state = it.decoder.state
        it.decoder.decode(np.full((1, 1, 8), np.nan, np.float32))
        it.decoder.rewind(state)
        found.append(it.decode(4))
    close(*found)


def test_caches_that_grew_are_recorded_anew_and_the_old_ones_freed(opened: Open) -> None:
    bench, direct = opened(capacity=16), opened(graphs=False, capacity=16)
    for it in (bench, direct):
        it.prefill()
    close(*(it.decode(3) for it in (bench, direct)))
    assert bench.device.counts["capture"] == STAGES
    free = [it.device.memory().free for it in (bench, direct)]
    for it in (bench, direct):
        it.decoder.grow(32)
    # What is recorded would have kept the old caches.
    grown = [a - it.device.memory().free for a, it in zip(free, (bench, direct), strict=True)]
    assert grown[0] == grown[1]
    assert bench.contexts() == 1  # the head's, which waits for its first run
    close(*(it.decode(2) for it in (bench, direct)))
    assert bench.device.counts["capture"] == 2 * STAGES
    close(*(it.decode(5) for it in (bench, direct)))


def test_growing_to_what_there_is_keeps_the_recordings(opened: Open) -> None:
    bench = opened()
    bench.prefill()
    bench.decode(3)
    bench.decoder.grow(CAPACITY)
    assert bench.counts(1)["capture"] == 0


def test_recordings_longest_unused_are_dropped(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_step, "_MOST_RECORDED", 2)
    bench = opened()
    bench.prefill()
    bench.decode(CAPACITY - 6)
    assert bench.contexts() == 2 * SEGMENTS + 1  # and the head's


def test_engines_that_cannot_be_recorded_go_on_without(opened: Open) -> None:
    bench, direct = opened(), opened(graphs=False)
    bench.device.no_graphs = True
    for it in (bench, direct):
        it.prefill()
    close(*(it.decode(8) for it in (bench, direct)))
    assert bench.backend.traffic.replays == 0
    assert bench.counts(1)["capture"] == 0


def test_step_that_failed_can_be_made_again(opened: Open) -> None:
    bench, direct = opened(), opened(graphs=False)
    for it in (bench, direct):
        it.prefill()
    bench.library.fault = EngineError("no")
    for _ in range(2):
        before = bench.decoder.state
        with pytest.raises(MachineError, match="segment_0: no"):
            bench.decoder.decode(hidden_of(0, 1))
        assert bench.decoder.state == before
    bench.library.fault = None
    close(*(it.decode(6) for it in (bench, direct)))
