import numpy as np
import pytest

from atp_runtime.backends import Backend, open_backend
from atp_runtime.chunk import Chunk
from atp_runtime.manifest import Stage
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.workspace import Scorer, Workspace

TEXT = -1


def scorer(images: list[int]) -> Scorer:
    image = np.array(images, dtype=np.int64)
    return Scorer.for_sequence(Chunk(image, image, image).visual(), len(images))


@pytest.fixture
def backend() -> Backend:
    return open_backend(threads=1)


def test_scorer_averages_visual_tokens_and_the_text_after_the_last_of_them() -> None:
    asked = scorer([TEXT, 0, TEXT, 0, TEXT, TEXT])
    assert asked.visual_weights.tolist() == [0, 0.5, 0, 0.5, 0, 0]
    assert asked.text_rows.tolist() == [4, 5]
    assert asked.text_weights.tolist() == [0.5, 0.5]
    assert asked.has_text


def test_scorer_asks_the_text_behind_the_last_image_also_when_that_image_is_gone() -> None:
    image = np.array([0, TEXT, TEXT], dtype=np.int64)
    visual = Chunk(image, image, image).visual()
    asked = Scorer.for_sequence(visual, 3, behind=2)
    assert (asked.text_rows.tolist(), asked.text_weights.tolist()) == ([2], [1])
    nobody = Scorer.for_sequence(visual, 3, behind=3)
    assert not nobody.has_text


def test_scorer_weighs_the_first_row_with_nothing_when_no_text_follows() -> None:
    asked = scorer([TEXT, 0])
    assert (asked.text_rows.tolist(), asked.text_weights.tolist()) == ([0], [0])
    assert not asked.has_text


def test_scorer_weighs_nothing_when_there_are_no_visual_tokens() -> None:
    asked = scorer([TEXT, TEXT])
    assert asked.visual_weights.tolist() == [0, 0]
    assert (asked.text_rows.tolist(), asked.text_weights.tolist()) == ([0], [0])
    assert not asked.has_text


def test_scorer_asks_the_last_token_alone_when_only_the_last_row_is_wanted() -> None:
    asked = scorer([TEXT, 0, TEXT, 0, TEXT, TEXT])
    last = asked.last_row()
    assert (last.text_rows.tolist(), last.text_weights.tolist()) == ([5], [1])
    assert last.visual_weights.tolist() == asked.visual_weights.tolist()
    assert last.has_text


def test_scorer_still_weighs_nothing_when_the_last_row_is_no_text() -> None:
    last = scorer([TEXT, 0]).last_row()
    assert (last.text_rows.tolist(), last.text_weights.tolist()) == ([0], [0])
    assert not last.has_text


def test_scorer_has_the_dtypes_of_the_stage_contract() -> None:
    for asked in (scorer([0, TEXT]), scorer([TEXT]), scorer([0, TEXT]).last_row()):
        dtypes = [asked.visual_weights.dtype, asked.text_rows.dtype, asked.text_weights.dtype]
        assert dtypes == [np.float32, np.int64, np.float32]


def test_output_of_a_segment_is_the_input_of_the_next_one(backend: Backend) -> None:
    space = Workspace(backend, 5, 3, "float16")
    stage = Stage("segment_0", "segment", "", (), (), ())
    written = space.outputs(0, stage, 4)["hidden_states_out"]
    taken = space.hidden_states(1, 4)
    assert (written.address, written.shape, written.dtype) == (taken.address, (1, 4, 3), "float16")
    assert taken.address != space.hidden_states(0, 4).address


def test_sequence_says_what_enters_where_it_stands_and_how_much_was_before(
    backend: Backend,
) -> None:
    space = Workspace(backend, 5, 3, "float32")
    written = space.write_sequence(np.array([0, 2]), np.array([7, 9]), past=6)
    found = {name: backend.download(array).tolist() for name, array in written.items()}
    assert found == {"keep_indices": [0, 2], "position_ids": [[7, 9]], "past_length": [6]}


def test_last_hidden_state_is_the_last_position(backend: Backend) -> None:
    space = Workspace(backend, 5, 3, "float32")
    values = np.arange(12, dtype=np.float32).reshape(1, 4, 3)
    backend.write(space.hidden_states(2, 4), values)
    assert backend.download(space.last_hidden_state(2, 4)).tolist() == [[[9, 10, 11]]]


def test_outputs_have_scores_only_at_a_pruning_point(backend: Backend) -> None:
    space = Workspace(backend, 5, 3, "float32")
    plain = Stage("segment_0", "segment", "", (), (), ())
    pruned = Stage("segment_0", "segment", "", (), (), (), (0, 1), PruningPoint(1, "atp", {}))
    assert list(space.outputs(0, plain, 4)) == ["hidden_states_out"]
    outputs = space.outputs(0, pruned, 4)
    assert list(outputs) == ["hidden_states_out", "scores.self", "scores.cross"]
    assert outputs["scores.self"].shape == outputs["scores.cross"].shape == (4,)


def test_workspace_raises_when_a_sequence_is_too_long(backend: Backend) -> None:
    with pytest.raises(ValueError, match="outside of"):
        Workspace(backend, 5, 3, "float32").hidden_states(0, 6)
