from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_runtime.bundle import Bundle
from atp_runtime.embedding import EmbeddingTable
from atp_runtime.errors import InputError
from atp_runtime.manifest import Manifest, read_manifest

ROWS, WIDTH, PLACEHOLDER = 7, 3, 100
WriteFiles = Callable[[Path, Manifest], None]


def table(dtype: str = "float32") -> np.ndarray:
    """Row r is [3r, 3r + 1, 3r + 2]."""
    return np.arange(ROWS * WIDTH, dtype=dtype).reshape(ROWS, WIDTH)


def features(images: int, tokens: int) -> np.ndarray:
    """Negative, so that none is a row of the table."""
    count = images * tokens * WIDTH
    return -1 - np.arange(count, dtype=np.float32).reshape(images * tokens, WIDTH)


def test_open_maps_the_table_of_a_bundle(hand_made: Path) -> None:
    rows = EmbeddingTable.open(Bundle.open(hand_made)).rows([3, 0])
    on_disk = np.load(hand_made / "weights" / "embed_tokens.npy")
    np.testing.assert_array_equal(rows, on_disk[[3, 0]])
    assert rows.flags.writeable


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.zeros((4, 8), np.float32), r"float32 \[4, 8\]"),
        (np.zeros((11, 8), np.float16), "float16"),
        (np.array([{}]), "Python objects"),
    ],
)
def test_open_raises_when_the_file_is_not_the_manifests_table(
    own_bundle: Path, write_files: WriteFiles, wrong: np.ndarray, said: str
) -> None:
    np.save(own_bundle / "weights" / "embed_tokens.npy", wrong, allow_pickle=True)
    write_files(own_bundle, read_manifest(own_bundle))
    bundle = Bundle.open(own_bundle)
    with pytest.raises(InputError, match=said):
        EmbeddingTable.open(bundle)


def test_open_raises_when_the_file_is_no_array(own_bundle: Path, write_files: WriteFiles) -> None:
    (own_bundle / "weights" / "embed_tokens.npy").write_bytes(b"no array")
    write_files(own_bundle, read_manifest(own_bundle))
    bundle = Bundle.open(own_bundle)
    with pytest.raises(InputError, match="NumPy array file"):
        EmbeddingTable.open(bundle)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_are_in_the_order_and_dtype_asked_for(dtype: str) -> None:
    rows = EmbeddingTable(table(dtype)).rows([6, 0, 6])
    assert rows.dtype == dtype
    assert rows.tolist() == [[18, 19, 20], [0, 1, 2], [18, 19, 20]]


def test_rows_are_empty_when_no_ids_are_given() -> None:
    assert EmbeddingTable(table()).rows([]).shape == (0, WIDTH)


@pytest.mark.parametrize("bad", [-1, ROWS, 2**40])
def test_rows_raise_when_an_id_is_outside_of_the_table(bad: int) -> None:
    with pytest.raises(InputError, match=f"token id {bad}"):
        EmbeddingTable(table()).rows([0, bad, 1])


def test_splice_puts_features_where_placeholders_are() -> None:
    hidden = EmbeddingTable(table()).splice(
        [1, PLACEHOLDER, PLACEHOLDER, 2, PLACEHOLDER, PLACEHOLDER], features(2, 2), PLACEHOLDER
    )
    expected = [[3, 4, 5], [-1, -2, -3], [-4, -5, -6], [6, 7, 8], [-7, -8, -9], [-10, -11, -12]]
    assert hidden.tolist() == [expected]


def test_splice_gives_plain_rows_when_there_is_no_image() -> None:
    hidden = EmbeddingTable(table()).splice([2, 0], features(0, 4), PLACEHOLDER)
    assert hidden.tolist() == [[[6, 7, 8], [0, 1, 2]]]


def test_splice_keeps_the_tables_dtype() -> None:
    half = features(1, 1).astype(np.float16)
    assert EmbeddingTable(table("float16")).splice([PLACEHOLDER], half, PLACEHOLDER).dtype == "f2"


@pytest.mark.parametrize("count", [0, 3, 5])
def test_splice_says_both_counts_when_placeholders_do_not_match_features(count: int) -> None:
    ids = [1] + [PLACEHOLDER] * count
    said = f"{count} image placeholders in the prompt, 4 image features"
    with pytest.raises(InputError, match=said):
        EmbeddingTable(table()).splice(ids, features(1, 4), PLACEHOLDER)


def test_splice_raises_when_a_text_id_is_outside_of_the_table() -> None:
    with pytest.raises(InputError, match="token id 7"):
        EmbeddingTable(table()).splice([ROWS, PLACEHOLDER], features(1, 1), PLACEHOLDER)


@given(st.lists(st.one_of(st.integers(0, ROWS - 1), st.just(PLACEHOLDER)), max_size=30))
def test_splice_takes_text_from_the_table_and_the_rest_from_features_in_order(
    ids: list[int],
) -> None:
    given_features = features(1, ids.count(PLACEHOLDER))
    hidden = EmbeddingTable(table()).splice(ids, given_features, PLACEHOLDER)
    following = iter(given_features)
    expected = [next(following) if i == PLACEHOLDER else table()[i] for i in ids]
    assert hidden.shape == (1, len(ids), WIDTH)
    np.testing.assert_array_equal(hidden[0], np.array(expected).reshape(len(ids), WIDTH))
