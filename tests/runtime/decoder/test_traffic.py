"""What moves between host and device, what is waited for, and what each call did."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.runtime.backends.host_device import HostDevice
from tests.runtime.decoder.conftest import BACKENDS, CAPACITY
from tests.runtime.decoder.naive_decoder import IMAGE, LAYERS, TEXT, chunk_of, hidden_of
from tests.runtime.forced_selection import ForcedSelection, keep_all

from atp_runtime.backends import Backend, Traffic
from atp_runtime.backends.base import ALIGNMENT
from atp_runtime.backends.device_backend import DeviceBackend
from atp_runtime.bundle import Bundle
from atp_runtime.decoder import SegmentedDecoder


def test_decode_moves_one_token_in_and_its_logits_out_and_waits_once(
    decoder: SegmentedDecoder, backend: Backend
) -> None:
    decoder.prefill(hidden_of(14, 6), chunk_of([IMAGE] * 5 + [TEXT]), keep_all)
    before = replace(backend.traffic)
    decoder.decode(hidden_of(14, 1))
    embedding, logits = 8 * 4, 11 * 4
    numbers = (1 + len(LAYERS)) * ALIGNMENT  # the position, and each segment's past length
    since = replace(traffic_since(before, backend), replays=0)
    assert since == Traffic(embedding + numbers, logits, 4, 1)


def test_prefill_brings_only_scores_and_logits_to_the_host_and_waits_for_each_once(
    decoder: SegmentedDecoder, backend: Backend
) -> None:
    before = replace(backend.traffic)
    select = ForcedSelection([[False] * 4 + [True], [True]])
    decoder.prefill(hidden_of(15, 6), chunk_of([IMAGE] * 5 + [TEXT]), select)
    since, scores = traffic_since(before, backend), (6 + 2) * 2
    assert since.device_to_host_bytes == (scores + 11) * 4
    assert since.synchronisations == len(LAYERS)


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "onnxruntime"])
def test_device_is_waited_for_as_often_as_is_counted(hand_made: Path, name: str) -> None:
    backend = BACKENDS[name]()
    assert isinstance(backend, DeviceBackend)
    assert isinstance(backend.device, HostDevice)
    with SegmentedDecoder(Bundle.open(hand_made), backend, CAPACITY) as decoder:
        decoder.prefill(hidden_of(14, 6), chunk_of([IMAGE] * 5 + [TEXT]), keep_all)
        before, counts = replace(backend.traffic), backend.device.counts.copy()
        decoder.prefill(hidden_of(15, 3), chunk_of([IMAGE] * 2 + [TEXT]), keep_all)
        decoder.decode(hidden_of(14, 1))
        assert len(decoder.calls) == 4
        waited = backend.device.counts - counts
    assert waited["synchronise"] == traffic_since(before, backend).synchronisations == 4
    assert waited["free"] == 0


def traffic_since(before: Traffic, backend: Backend) -> Traffic:
    then, now = vars(before), vars(backend.traffic)
    return Traffic(**{name: now[name] - then[name] for name in now})


def test_calls_say_what_every_stage_computed(decoder: SegmentedDecoder) -> None:
    select = ForcedSelection([[False, True], [False]])
    result = decoder.prefill(hidden_of(16, 4), chunk_of([TEXT, IMAGE, IMAGE, TEXT]), select)
    stages = ["segment_0", "segment_1", "segment_2", "head"]
    assert [call.stage for call in result.calls] == stages
    assert [call.tokens for call in result.calls] == [4, 3, 2, 1]
    assert [call.past for call in result.calls] == [0, 0, 0, 0]
    decoder.decode(hidden_of(16, 1))
    assert [call.stage for call in decoder.calls] == stages
    assert [call.past for call in decoder.calls] == [4, 3, 2, 0]
    assert all(call.seconds > 0 for call in (*result.calls, *decoder.calls))
