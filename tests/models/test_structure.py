"""What checkpoints say of the work that visual tokens are spared, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atp_models.architecture import read_architecture
from atp_models.checkpoint import Checkpoint
from atp_models.pruning_config import read_pruning_config
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_models.structure import check_structure, make_structure, read_structure
from atp_models.text_spec import TextSpec
from atp_runtime.errors import InputError
from atp_runtime.structure import Structure

AUTHORS = {"attncut_w": 5, "headcut_num": 24, "layercut_num": 16, "mlpcut_ratio": 2}
HEADS = np.array([[True, True], [False, True], [False, False]])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextSpec:
    """4 layers, 4 query heads in pairs, 128 channels."""
    path = tmp_path_factory.mktemp("checkpoint")
    write_random_checkpoint(path, tiny_config(kv_heads=2))
    return read_architecture(Checkpoint.open(path)).text


def test_a_checkpoint_without_a_word_of_it_has_none(tmp_path: Path) -> None:
    assert read_structure({"text_config": {}}, {"layers": [2]}, tmp_path) is None


def test_a_section_is_read_field_by_field(tmp_path: Path) -> None:
    section = {"window": 3, "heads": ["11", "01"], "ffn_ratio": 4, "cut_layer": 1, "mode": "masked"}

    found = read_structure({}, {"structure": section}, tmp_path)

    assert found == Structure(3, ("11", "01"), 4, 1, "masked")


@pytest.mark.parametrize("name", ["heads.npy", "heads.json"])
def test_heads_may_lie_in_a_file_beside_the_weights(tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "heads.npy", HEADS)
    (tmp_path / "heads.json").write_text(json.dumps({"heads": HEADS.tolist()}))

    assert make_structure({"heads": name}, tmp_path, "here").heads == ("11", "01", "00")


def test_the_section_leaves_atp_its_own_fields(tmp_path: Path) -> None:
    file = tmp_path / "pruning_config.json"
    file.write_text(json.dumps({"layers": [2], "min_keep": 3, "structure": {"window": 5}}))
    config = read_pruning_config(tmp_path)
    assert config is not None
    assert (config.layers, config.min_keep) == ((2,), 3)

    file.write_text(json.dumps({"structure": {"window": 5}}))
    assert read_pruning_config(tmp_path) is None


@pytest.mark.parametrize("nested", [False, True])
def test_the_authors_keys_are_read_as_their_code_does(tmp_path: Path, nested: bool) -> None:
    (tmp_path / "headmask").mkdir()
    np.save(tmp_path / "headmask/headmask_7b_24.npy", HEADS)
    given = {**AUTHORS, "sprompt_len": 35}

    found = read_structure({"text_config": given} if nested else given, {}, tmp_path)

    assert found == Structure(window=5, heads=("11", "01", "00"), ffn_ratio=2, cut_layer=16)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"headcut_num": 8}, "headcut_num 8"),
        ({"headcut_num": 24}, r"headmask_7b_24\.npy"),  # is not there
        ({"attncut_w": 4}, "window is 4"),
        ({"mlpcut_ratio": 2.5}, "ffn_ratio: expected int"),
        ({"layercut_num": None}, "without layercut_num"),
    ],
)
def test_authors_values_without_a_meaning_are_refused_by_name(
    tmp_path: Path, changed: dict[str, Any], complaint: str
) -> None:
    if "headcut_num" not in changed:
        (tmp_path / "headmask").mkdir()
        np.save(tmp_path / "headmask/headmask_7b_24.npy", HEADS)
    given = {name: value for name, value in {**AUTHORS, **changed}.items() if value is not None}

    with pytest.raises(InputError, match=complaint):
        read_structure(given, {}, tmp_path)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"window": 2}, "window is 2"),
        ({"window": -1}, "window is -1"),
        ({"ffn_ratio": 0}, "ffn_ratio is 0"),
        ({"mode": "slow"}, "mode 'slow'"),
        ({"heads": ["10", "1x"]}, "heads of layer 1 are '1x'"),
        ({"heads": [[1, 0]]}, "no rows of booleans"),
        ({"heads": "numbers.npy"}, "no rows of booleans"),
        ({"heads": "nowhere.npy"}, "nowhere.npy"),
        ({"heads": "torn.json"}, "torn.json"),
        ({"windows": 5}, "unknown field 'windows'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], complaint: str
) -> None:
    np.save(tmp_path / "numbers.npy", HEADS.astype(np.float32))
    (tmp_path / "torn.json").write_text("{")

    with pytest.raises(InputError, match=complaint):
        make_structure(settings, tmp_path, "here")


@pytest.mark.parametrize(
    ("structure", "complaint", "reason"),
    [
        (Structure(cut_layer=4), "cut_layer 4", "before layers 1 to 3 of 4"),
        (Structure(cut_layer=0), "cut_layer 0", "before layers 1 to 3 of 4"),
        (Structure(ffn_ratio=3), "ffn_ratio 3", "128 channels"),
        (Structure(heads=("1111",) * 3), "heads of 3 layers with 4", "another model's"),
        (Structure(heads=("11",) * 4), "heads of 4 layers with 2", "another model's"),
        (Structure(heads=("1111", "1101") * 2), "heads 2 to 3 of layer 1", "share keys and values"),
    ],
)
def test_a_structure_of_another_model_is_refused_with_the_reason(
    text: TextSpec, structure: Structure, complaint: str, reason: str
) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        check_structure(structure, text)
    assert reason in caught.value.why


def test_a_structure_that_fits_is_taken(text: TextSpec) -> None:
    check_structure(Structure(5, ("1111", "0011", "0000", "1100"), 4, 3), text)
