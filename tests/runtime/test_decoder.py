import shutil
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from tests.runtime.backends.host_device import HostDevice
from tests.runtime.backends.host_engines import host_backend, write_engines

from atp_runtime.backends import Backend, Traffic, open_backend
from atp_runtime.backends.base import ALIGNMENT
from atp_runtime.backends.device_backend import DeviceBackend
from atp_runtime.backends.onnxruntime_gpu import OnnxRuntimeGpuBackend, Provider
from atp_runtime.bundle import Bundle
from atp_runtime.chunk import Chunk
from atp_runtime.decoder import SegmentedDecoder
from atp_runtime.decoder_results import DecoderState, PrefillResult
from atp_runtime.errors import InputError
from atp_runtime.manifest import Manifest, read_manifest
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import Selection, VisualTokens
from atp_runtime.workspace import Scorer

CAPACITY = 40
CPU = Provider("CPUExecutionProvider", "cpu")
BACKENDS: dict[str, Callable[[], Backend]] = {
    "onnxruntime": lambda: open_backend(threads=1),
    "onnxruntime on a device": lambda: OnnxRuntimeGpuBackend(HostDevice(late=False), CPU),
    "tensorrt": host_backend,
    "tensorrt, shared memory": lambda: host_backend(integrated=True),
    "tensorrt, no graphs": lambda: host_backend(graphs=False),
}
LAYERS = ((0, 2), (2, 3), (3, 5))
TEXT, IMAGE = -1, 0


@dataclass
class NaiveDecoder:
    """What the hand-made graphs compute (see conftest.py), in float64 and token by token."""

    head: np.ndarray
    position: int = 0
    keys: dict[int, list[np.ndarray]] = field(default_factory=dict)
    values: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def run(
        self, hidden: np.ndarray, visual: set[int], masks: Sequence[Sequence[bool]]
    ) -> tuple[np.ndarray, list[list[int]], list[np.ndarray]]:
        """Logits, what is kept at each point (as tokens of this call) and scores.self, cross."""
        going = list(range(len(hidden)))
        rows = [hidden[token].astype(np.float64) for token in going]
        kept, scores = [], []
        for number, layers in enumerate(LAYERS):
            positions = [self.position + token for token in going]
            for layer in range(*layers):
                before = rows
                rows, new_keys = self.layer(layer, rows, positions)
            if number == len(LAYERS) - 1:
                break
            scores.append(self.scores(before, new_keys, going, visual))
            mask = iter(masks[number])
            stays = [token not in visual or next(mask) for token in going]
            rows = [row for row, stay in zip(rows, stays, strict=True) if stay]
            going = [token for token, stay in zip(going, stays, strict=True) if stay]
            kept.append(going)
        self.position += len(hidden)
        return rows[-1] @ self.head, kept, scores

    def layer(
        self, layer: int, rows: list[np.ndarray], positions: list[int]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        keys = self.keys.setdefault(layer, [])
        values = self.values.setdefault(layer, [])
        out, new = [], []
        for row, position in zip(rows, positions, strict=True):
            new.append((0.5 + 0.1 * layer) * row + 0.01 * position)
            keys.append(new[-1])
            values.append(0.3 * row - 0.02 * position + 0.1 * layer)
            out.append(np.tanh(row + (sum(keys) - 0.5 * sum(values)) / 16))
        return out, new

    @staticmethod
    def scores(
        queries: list[np.ndarray], keys: list[np.ndarray], going: list[int], visual: set[int]
    ) -> np.ndarray:
        places = [place for place, token in enumerate(going) if token in visual]
        width = len(queries[0])
        own = np.mean([queries[p] for p in places], axis=0) if places else np.zeros(width)
        end = max(visual, default=0)  # of the last image, whatever is left of it
        after = [place for place, token in enumerate(going) if token > end] if places else []
        text = np.mean([queries[p] for p in after], axis=0) if after else np.zeros(width)
        return np.array([[key @ own for key in keys], [key @ text for key in keys]])


@dataclass
class ForcedSelection:
    """Keeps what it is told, and remembers what it was asked."""

    masks: Sequence[Sequence[bool]]
    points: list[int] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    has_text: list[bool] = field(default_factory=list)
    visual: list[VisualTokens] = field(default_factory=list)

    def __call__(
        self,
        point: PruningPoint,
        scores_self: np.ndarray,
        scores_cross: np.ndarray,
        has_text: bool,
        visual: VisualTokens,
    ) -> Selection:
        mask = self.masks[len(self.points)]
        self.points.append(point.before_layer)
        self.scores.append(np.stack([scores_self, scores_cross]))
        self.has_text.append(has_text)
        self.visual.append(visual)
        return Selection(np.array(mask, dtype=np.bool_).reshape(len(visual)), note="forced")


def keep_all(
    _point: PruningPoint, _self: np.ndarray, _cross: np.ndarray, _text: bool, visual: VisualTokens
) -> Selection:
    return Selection(np.ones(len(visual), dtype=np.bool_))


def chunk_of(images: Sequence[int]) -> Chunk:
    image = np.array(images, dtype=np.int64)
    place = np.where(image >= 0, np.arange(len(image)), -1)
    return Chunk(image, place, place)


def hidden_of(seed: int, tokens: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, tokens, 8)).astype(np.float32)


def visual_of(images: Sequence[int]) -> set[int]:
    return {token for token, image in enumerate(images) if image >= 0}


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]()


@pytest.fixture(scope="module")
def hand_made(hand_made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, with engines for all positions of the model."""
    root = Path(shutil.copytree(hand_made, tmp_path_factory.mktemp("engines") / "hand-made"))
    write_engines(root, longest=96)
    return root


@pytest.fixture(scope="module")
def loaded(hand_made: Path, backend: Backend) -> Iterator[SegmentedDecoder]:
    with SegmentedDecoder(Bundle.open(hand_made), backend, CAPACITY) as decoder:
        yield decoder


@pytest.fixture
def decoder(loaded: SegmentedDecoder) -> SegmentedDecoder:
    loaded.reset()
    return loaded


@pytest.fixture
def naive(head: np.ndarray) -> NaiveDecoder:
    return NaiveDecoder(head)


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_prefill_equals_the_unsegmented_computation_when_all_tokens_stay(
    decoder: SegmentedDecoder, naive: NaiveDecoder
) -> None:
    images = [TEXT, IMAGE, IMAGE, IMAGE, TEXT, TEXT]
    hidden = hidden_of(1, 6)
    expected, _, _ = naive.run(hidden[0], visual_of(images), [[True] * 3] * 2)
    result = decoder.prefill(hidden, chunk_of(images), keep_all)
    close(result.logits, expected)
    assert decoder.state == DecoderState(position=6, lengths=(6, 6, 6))


def test_prefill_drops_tokens_from_the_next_segment_on(
    decoder: SegmentedDecoder, naive: NaiveDecoder
) -> None:
    images = [TEXT, IMAGE, IMAGE, IMAGE, TEXT, TEXT]
    masks = [[True, False, True], [False, True]]
    hidden = hidden_of(2, 6)
    expected, _, _ = naive.run(hidden[0], visual_of(images), masks)
    result = decoder.prefill(hidden, chunk_of(images), ForcedSelection(masks))
    close(result.logits, expected)
    assert decoder.state == DecoderState(position=6, lengths=(6, 5, 4))


def test_prefill_reports_each_point_in_tokens_of_the_chunk(decoder: SegmentedDecoder) -> None:
    images = [TEXT, IMAGE, IMAGE, IMAGE, TEXT, TEXT]
    masks = [[True, False, True], [False, True]]
    points = decoder.prefill(hidden_of(2, 6), chunk_of(images), ForcedSelection(masks)).points
    assert [point.before_layer for point in points] == [2, 3]
    assert [point.entered.tolist() for point in points] == [[0, 1, 2, 3, 4, 5], [0, 1, 3, 4, 5]]
    assert [point.kept.tolist() for point in points] == [[0, 1, 3, 4, 5], [0, 3, 4, 5]]
    assert [point.selection.note for point in points] == ["forced", "forced"]


def test_prefill_asks_about_tokens_where_they_stand_in_the_segment(
    decoder: SegmentedDecoder,
) -> None:
    images = [TEXT, IMAGE, IMAGE, TEXT, IMAGE, TEXT]
    select = ForcedSelection([[False, True, True], [True, True]])
    decoder.prefill(hidden_of(3, 6), chunk_of(images), select)
    assert select.points == [2, 3]
    assert [visual.index.tolist() for visual in select.visual] == [[1, 2, 4], [1, 3]]
    assert [visual.row.tolist() for visual in select.visual] == [[1, 2, 4], [2, 4]]


@pytest.mark.parametrize("first", [[False, True, True], [True, True, False]])
def test_prefill_passes_the_scores_of_the_whole_sequence(
    decoder: SegmentedDecoder, naive: NaiveDecoder, first: list[bool]
) -> None:
    images = [TEXT, IMAGE, IMAGE, TEXT, IMAGE, TEXT, TEXT]
    masks = [first, [True, False]]
    hidden = hidden_of(4, 7)
    _, _, expected = naive.run(hidden[0], visual_of(images), masks)
    select = ForcedSelection(masks)
    decoder.prefill(hidden, chunk_of(images), select)
    for actual, wanted in zip(select.scores, expected, strict=True):
        close(actual, wanted)


def test_prefill_asks_the_rows_that_another_scorer_names(decoder: SegmentedDecoder) -> None:
    """These scores are linear, so those of two rows are the mean of each one's."""
    images, hidden = [TEXT, IMAGE, IMAGE, TEXT, TEXT], hidden_of(4, 5)

    def cross(rows: slice) -> np.ndarray:
        def scorer(visual: VisualTokens, tokens: int, behind: int) -> Scorer:
            asked = Scorer.for_sequence(visual, tokens, behind)
            rest = asked.text_rows[rows]
            weights = np.full(len(rest), 1 / len(rest), dtype=np.float32)
            return Scorer(asked.visual_weights, rest, weights, asked.has_text)

        select = ForcedSelection([[True, False], [True]])
        decoder.reset()
        decoder.scorer = scorer
        decoder.prefill(hidden, chunk_of(images), select)
        decoder.scorer = Scorer.for_sequence
        return select.scores[0][1]

    last, before = cross(slice(1, 2)), cross(slice(0, 1))
    assert np.abs(last - before).max() > 0.1
    close(cross(slice(0, 2)), (last + before) / 2)


@pytest.mark.parametrize(
    ("images", "has_text"),
    [([TEXT, IMAGE, TEXT], True), ([TEXT, IMAGE], False), ([TEXT, TEXT], False)],
)
def test_prefill_says_whether_text_follows_the_last_visual_token(
    decoder: SegmentedDecoder, naive: NaiveDecoder, images: list[int], has_text: bool
) -> None:
    masks = [[True] * images.count(IMAGE)] * 2
    hidden = hidden_of(5, len(images))
    expected, _, scores = naive.run(hidden[0], visual_of(images), masks)
    select = ForcedSelection(masks)
    close(decoder.prefill(hidden, chunk_of(images), select).logits, expected)
    assert select.has_text == [has_text, has_text]
    close(select.scores[0], scores[0])


def test_decode_continues_after_the_unpruned_length(
    decoder: SegmentedDecoder, naive: NaiveDecoder
) -> None:
    images = [IMAGE, IMAGE, IMAGE, TEXT]
    masks = [[False, True, False], [False]]
    hidden = hidden_of(6, 6)
    naive.run(hidden[0, :4], visual_of(images), masks)
    decoder.prefill(hidden[:, :4], chunk_of(images), ForcedSelection(masks))
    for step in (4, 5):
        expected, _, _ = naive.run(hidden[0, step : step + 1], set(), [[], []])
        close(decoder.decode(hidden[:, step : step + 1]), expected)
    assert decoder.state == DecoderState(position=6, lengths=(6, 4, 3))


def test_later_turn_prunes_its_own_image_and_keeps_the_caches_of_earlier_turns(
    decoder: SegmentedDecoder, naive: NaiveDecoder
) -> None:
    first, second = [IMAGE, IMAGE, TEXT], [TEXT, IMAGE + 1, IMAGE + 1, TEXT]
    hidden = hidden_of(7, 8)
    naive.run(hidden[0, :3], visual_of(first), [[True, False], [False]])
    decoder.prefill(hidden[:, :3], chunk_of(first), ForcedSelection([[True, False], [False]]))
    naive.run(hidden[0, 3:4], set(), [[], []])
    decoder.decode(hidden[:, 3:4])
    masks = [[False, True], [True]]
    expected, kept, _ = naive.run(hidden[0, 4:], visual_of(second), masks)
    result = decoder.prefill(hidden[:, 4:], chunk_of(second), ForcedSelection(masks))
    close(result.logits, expected)
    assert [point.kept.tolist() for point in result.points] == kept == [[0, 2, 3], [0, 2, 3]]
    assert decoder.state == DecoderState(position=8, lengths=(8, 6, 5))


def test_prefill_of_all_tokens_equals_decoding_them_one_by_one(decoder: SegmentedDecoder) -> None:
    hidden = hidden_of(8, 5)
    whole = decoder.prefill(hidden, Chunk.text(5), keep_all).logits
    decoder.reset()
    for step in range(5):
        logits = decoder.decode(hidden[:, step : step + 1])
    close(logits, whole)


def test_logits_stay_what_they_were_when_the_decoder_goes_on(decoder: SegmentedDecoder) -> None:
    hidden = hidden_of(9, 3)
    first = decoder.prefill(hidden, Chunk.text(3), keep_all).logits
    before = first.copy()
    decoder.decode(hidden[:, :1])
    np.testing.assert_array_equal(first, before)


def test_prefill_raises_when_there_is_nothing_to_run(decoder: SegmentedDecoder) -> None:
    with pytest.raises(InputError, match="no tokens"):
        decoder.prefill(hidden_of(0, 0), Chunk.text(0), keep_all)


def test_prefill_raises_when_pruning_leaves_no_token(decoder: SegmentedDecoder) -> None:
    decoder.prefill(hidden_of(0, 2), Chunk.text(2), keep_all)
    before = decoder.state
    with pytest.raises(InputError, match="no token is left before layer 3"):
        decoder.prefill(
            hidden_of(0, 2), chunk_of([1, 1]), ForcedSelection([[True, False], [False]])
        )
    assert decoder.state == before


def test_prefill_raises_when_the_prompt_is_longer_than_the_capacity(
    decoder: SegmentedDecoder, backend: Backend
) -> None:
    decoder.prefill(hidden_of(0, 3), Chunk.text(3), keep_all)
    calls = backend.traffic.stage_calls
    with pytest.raises(InputError, match="38 tokens do not fit: 3 of 40"):
        decoder.prefill(hidden_of(0, 38), Chunk.text(38), keep_all)
    assert backend.traffic.stage_calls == calls
    assert decoder.state == DecoderState(3, (3, 3, 3))


@pytest.mark.parametrize(("tokens", "said"), [(0, "no tokens"), (39, "39 tokens do not fit")])
def test_check_room_refuses_what_prefill_would(
    decoder: SegmentedDecoder, tokens: int, said: str
) -> None:
    decoder.prefill(hidden_of(0, 2), Chunk.text(2), keep_all)
    decoder.check_room(38)
    with pytest.raises(InputError, match=said):
        decoder.check_room(tokens)


def test_decode_raises_when_the_cache_is_full(decoder: SegmentedDecoder) -> None:
    decoder.prefill(hidden_of(0, CAPACITY), Chunk.text(CAPACITY), keep_all)
    before = decoder.state
    with pytest.raises(InputError, match="1 tokens do not fit"):
        decoder.decode(hidden_of(0, 1))
    assert decoder.state == before


def test_prefill_raises_when_the_model_has_no_such_positions(
    hand_made: Path, backend: Backend
) -> None:
    with SegmentedDecoder(Bundle.open(hand_made), backend, 200) as decoder:
        decoder.prefill(hidden_of(0, 90), Chunk.text(90), keep_all)
        with pytest.raises(InputError, match="7 tokens after 90 are more than 96"):
            decoder.prefill(hidden_of(0, 7), Chunk.text(7), keep_all)
        assert decoder.prefill(hidden_of(0, 6), Chunk.text(6), keep_all).logits.shape == (11,)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_decoder_is_as_before_when_a_prefill_stops_halfway(
    decoder: SegmentedDecoder, naive: NaiveDecoder, error: type[BaseException]
) -> None:
    hidden = hidden_of(10, 7)
    naive.run(hidden[0, :3], set(), [[], []])
    decoder.prefill(hidden[:, :3], Chunk.text(3), keep_all)
    before = decoder.state

    def stop_at_second_point(
        point: PruningPoint, a: np.ndarray, b: np.ndarray, text: bool, visual: VisualTokens
    ) -> Selection:
        if point.before_layer == 3:
            raise error
        return keep_all(point, a, b, text, visual)

    with pytest.raises(error):
        decoder.prefill(hidden_of(11, 5), chunk_of([TEXT, *[IMAGE] * 4]), stop_at_second_point)
    assert decoder.state == before
    expected, _, _ = naive.run(hidden[0, 3:], set(), [[], []])
    close(decoder.prefill(hidden[:, 3:], Chunk.text(4), keep_all).logits, expected)


def test_rewind_takes_back_later_tokens(decoder: SegmentedDecoder) -> None:
    hidden = hidden_of(12, 5)
    decoder.prefill(
        hidden[:, :3], chunk_of([IMAGE, IMAGE, TEXT]), ForcedSelection([[True, False], [False]])
    )
    state = decoder.state
    once = decoder.prefill(hidden[:, 3:], Chunk.text(2), keep_all).logits
    decoder.decode(hidden[:, :1])
    decoder.rewind(state)
    assert decoder.state == state
    again = decoder.prefill(hidden[:, 3:], Chunk.text(2), keep_all).logits
    np.testing.assert_array_equal(once, again)


def test_rewind_raises_when_the_state_is_ahead(decoder: SegmentedDecoder) -> None:
    with pytest.raises(ValueError, match="0 positions"):
        decoder.rewind(DecoderState(2, (2, 2, 2)))


def test_grow_keeps_the_conversation(
    hand_made: Path, backend: Backend, naive: NaiveDecoder
) -> None:
    hidden = hidden_of(13, 8)
    with SegmentedDecoder(Bundle.open(hand_made), backend, 4) as decoder:
        naive.run(hidden[0, :3], set(), [[], []])
        naive.run(hidden[0, 3:4], set(), [[], []])
        decoder.prefill(hidden[:, :3], Chunk.text(3), keep_all)
        decoder.decode(hidden[:, 3:4])
        decoder.grow(8)
        expected, _, _ = naive.run(hidden[0, 4:], set(), [[], []])
        close(decoder.prefill(hidden[:, 4:], Chunk.text(4), keep_all).logits, expected)


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


def test_decoder_names_the_stage_when_a_graph_is_damaged(
    own_bundle: Path, write_files: Callable[[Path, Manifest], None]
) -> None:
    (own_bundle / "onnx" / "segment_2.onnx").write_bytes(b"\x08\x07damaged")
    write_files(own_bundle, read_manifest(own_bundle))
    bundle = Bundle.open(own_bundle)
    with pytest.raises(InputError, match="stage segment_2"):
        SegmentedDecoder(bundle, open_backend(threads=1), CAPACITY)


class DecoderAgainstNaive(RuleBasedStateMachine):
    """Any conversation gives the naive computation's logits, failures in between or not."""

    decoder: SegmentedDecoder
    head: np.ndarray

    @initialize()
    def begin(self) -> None:
        self.decoder.reset()
        self.naive = NaiveDecoder(self.head)
        self.lengths = [0, 0, 0]
        self.seed = 0
        self.remember()

    @rule()
    def remember(self) -> None:
        self.earlier = self.decoder.state, deepcopy(self.naive), self.lengths

    @rule()
    def rewind(self) -> None:
        state, naive, self.lengths = self.earlier
        self.decoder.rewind(state)
        self.naive = deepcopy(naive)

    def next_hidden(self, tokens: int) -> np.ndarray:
        self.seed += 1
        return hidden_of(self.seed, tokens)

    @rule(images=st.lists(st.sampled_from([TEXT, 0, 1]), min_size=1, max_size=9), data=st.data())
    def prefill(self, images: list[int], data: st.DataObject) -> None:
        assume(self.lengths[0] + len(images) <= CAPACITY)
        left, masks = len(visual_of(images)), []
        for _ in range(2):
            masks.append(data.draw(st.lists(st.booleans(), min_size=left, max_size=left)))
            left = sum(masks[-1])
        assume(left or TEXT in images)
        hidden = self.next_hidden(len(images))
        expected, kept, _ = self.naive.run(hidden[0], visual_of(images), masks)
        result: PrefillResult = self.decoder.prefill(
            hidden, chunk_of(images), ForcedSelection(masks)
        )
        close(result.logits, expected)
        assert [point.kept.tolist() for point in result.points] == kept
        self.count(len(images), *map(len, kept))

    @rule()
    def decode(self) -> None:
        assume(self.lengths[0] < CAPACITY)
        hidden = self.next_hidden(1)
        expected, _, _ = self.naive.run(hidden[0], set(), [[], []])
        close(self.decoder.decode(hidden), expected)
        self.count(1, 1, 1)

    @rule(tokens=st.integers(1, 5))
    def overflow(self, tokens: int) -> None:
        count = CAPACITY - self.lengths[0] + tokens
        with pytest.raises(InputError):
            self.decoder.prefill(self.next_hidden(count), Chunk.text(count), keep_all)

    @rule(tokens=st.integers(1, 5))
    def fail_in_selection(self, tokens: int) -> None:
        assume(self.lengths[0] + tokens <= CAPACITY)
        with pytest.raises(IndexError):
            self.decoder.prefill(
                self.next_hidden(tokens), Chunk.text(tokens), ForcedSelection([[]])
            )

    def count(self, *tokens: int) -> None:
        self.lengths = [length + more for length, more in zip(self.lengths, tokens, strict=True)]

    @invariant()
    def lengths_are_those_of_the_tokens_that_reached_each_segment(self) -> None:
        assert list(self.decoder.state.lengths) == self.lengths
        assert self.decoder.state.position == self.naive.position


def test_decoder_follows_the_naive_computation_through_any_conversation(
    loaded: SegmentedDecoder, head: np.ndarray
) -> None:
    machine = type("Machine", (DecoderAgainstNaive,), {"decoder": loaded, "head": head})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=10, stateful_step_count=12, deadline=None)
    )
