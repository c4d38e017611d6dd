from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from atp_models.atp import AtpModules
from atp_models.demo.deltas import Deltas, LowRank, merge_lora, read_deltas, save_deltas
from atp_models.demo.recipe import DELTAS, DEMO, Training
from atp_models.pruning_config import PruningConfig
from atp_runtime.errors import CheckFailedError, InputError


@pytest.fixture
def file(tmp_path: Path, trained: Deltas, training: Training) -> Path:
    save_deltas(tmp_path / "deltas.safetensors", trained, training)
    return tmp_path / "deltas.safetensors"


def changed(file: Path, **tensors: torch.Tensor | None) -> Path:
    """The file with tensors replaced, added, or (None) left out; dots are written "__"."""
    with safe_open(file, framework="pt") as reader:
        metadata = reader.metadata()
    content = load_file(file)
    for name, tensor in tensors.items():
        content.pop(name.replace("__", "."), None)
        if tensor is not None:
            content[name.replace("__", ".")] = tensor
    save_file(content, file, metadata=metadata)
    return file


def refusal(file: Path) -> str:
    with pytest.raises(CheckFailedError) as caught:
        read_deltas(file)
    return caught.value.what


def test_merged_weight_is_w_plus_scale_b_a() -> None:
    state = {
        "model.layers.0.self_attn.v_proj.weight": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        "model.layers.0.mlp.up_proj.weight": torch.ones(2, 2),
    }
    update = LowRank(a=torch.tensor([[1.0, 0.0, -1.0]]), b=torch.tensor([[2.0], [10.0]]))
    deltas = Deltas({}, {(0, "v_proj"): update}, 0.5, AtpModules(PruningConfig(())))
    merged = merge_lora(state, deltas)
    # 0.5 * [[2], [10]] [[1, 0, -1]] = [[1, 0, -1], [5, 0, -5]]
    expected = torch.tensor([[2.0, 2.0, 2.0], [9.0, 5.0, 1.0]])
    assert torch.equal(merged["model.layers.0.self_attn.v_proj.weight"], expected)
    assert torch.equal(merged["model.layers.0.mlp.up_proj.weight"], torch.ones(2, 2))
    assert state["model.layers.0.self_attn.v_proj.weight"][0, 0] == 1.0


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("model.layers.1.mlp.up_proj.weight", (4, 3), "has not"),
        ("model.layers.0.mlp.up_proj.weight", (3, 4), r"\[4, 3\]"),
    ],
)
def test_an_update_that_fits_no_weight_is_refused(
    name: str, shape: tuple[int, int], problem: str
) -> None:
    update = LowRank(a=torch.zeros(2, 3), b=torch.zeros(4, 2))
    deltas = Deltas({}, {(0, "up_proj"): update}, 1.0, AtpModules(PruningConfig(())))
    with pytest.raises(CheckFailedError, match=problem):
        merge_lora({name: torch.zeros(shape)}, deltas)


def test_what_is_saved_is_what_is_read(file: Path, trained: Deltas, training: Training) -> None:
    found, how = read_deltas(file)
    assert how == training
    assert found.lora_scale == trained.lora_scale
    assert found.modules.config == trained.modules.config
    for name, value in trained.modules.state_dict().items():
        assert torch.equal(found.modules.state_dict()[name], value)
    assert found.projector.keys() == trained.projector.keys()
    assert all(
        torch.equal(found.projector[name], trained.projector[name]) for name in found.projector
    )
    assert found.lora.keys() == trained.lora.keys()
    for key, update in trained.lora.items():
        whole = update.b @ update.a
        off = found.lora[key].b @ found.lora[key].a - whole
        # Half a step of 1 / 127 of the largest value, in both factors of each rank.
        assert float(off.norm() / whole.norm()) < 0.02


def test_a_rank_that_changes_nothing_is_read_as_nothing(
    tmp_path: Path, trained: Deltas, training: Training
) -> None:
    update = LowRank(a=torch.zeros(2, 64), b=torch.ones(64, 2))
    lora = {**trained.lora, (0, "q_proj"): update}
    save_deltas(tmp_path / "new", replace(trained, lora=lora), training)
    found, _ = read_deltas(tmp_path / "new")
    assert not (found.lora[0, "q_proj"].b @ found.lora[0, "q_proj"].a).any()


def test_file_holds_few_bits_but_for_modules_and_scales(file: Path) -> None:
    expected = {"projector": torch.float16, "lora": torch.int8, "atp": torch.float32}
    for name, tensor in load_file(file).items():
        kind = "atp" if name.endswith(".scale") else name.partition(".")[0]
        assert tensor.dtype == expected[kind], name


def test_equal_deltas_give_equal_files(
    file: Path, tmp_path: Path, trained: Deltas, training: Training
) -> None:
    save_deltas(tmp_path / "again", trained, training)
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", file.name]


def test_a_value_beyond_half_precision_is_refused_and_nothing_written(
    tmp_path: Path, trained: Deltas, training: Training
) -> None:
    projector = {**trained.projector, "linear_1.bias": torch.full((64,), 1e6)}
    with pytest.raises(InputError, match=r"linear_1\.bias"):
        save_deltas(tmp_path / "new", replace(trained, projector=projector), training)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_projector_bias_is_refused_when_saving(
    tmp_path: Path, trained: Deltas, training: Training
) -> None:
    projector = {"linear_1.weight": trained.projector["linear_1.weight"]}
    with pytest.raises(InputError, match="projector"):
        save_deltas(tmp_path / "new", replace(trained, projector=projector), training)


def test_a_truncated_file_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])
    assert "cannot be read" in refusal(file)


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other")
    assert "metadata" in refusal(tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"projector__linear_2__bias": None}, "holds not just"),
        ({"projector__linear_3__bias": torch.zeros(2).half()}, "holds not just"),
        ({"encoder__weight": torch.zeros(2).half()}, "holds not just"),
        ({"lora__0__q_proj__A": None}, "not two factors and a scale"),
        ({"lora__0__q_proj__scale": None}, "not two factors and a scale"),
        ({"lora__0__q_proj__A": torch.zeros(3, 64, dtype=torch.int8)}, "not of one rank"),
        ({"lora__0__q_proj__A": torch.zeros(2, 64).half()}, "int8"),
        ({"lora__0__lm_head__A": torch.zeros(2, 2, dtype=torch.int8)}, "lora.0.lm_head.A"),
        ({"lora__first__q_proj__A": torch.zeros(2, 2).to(torch.int8)}, "lora.first.q_proj.A"),
        ({"lora__0__q_proj__scale": torch.full((2,), torch.nan)}, "not finite"),
        ({"projector__linear_2__bias": torch.zeros(64)}, "float16"),
        ({"atp__points__0__shared__bias": None}, "not whole"),
        ({"atp__points__1__shared__bias": torch.zeros(32)}, "not whole"),
    ],
)
def test_a_file_with_other_tensors_is_refused_by_what_is_wrong(
    file: Path, change: dict[str, torch.Tensor | None], problem: str
) -> None:
    assert problem in refusal(changed(file, **change))


@pytest.mark.skipif(not DELTAS.is_file(), reason="nothing is trained yet")
def test_shipped_deltas_are_small_and_trained_for_the_current_recipe() -> None:
    _, training = read_deltas(DELTAS)
    assert training.recipe == DEMO.version
    assert DELTAS.stat().st_size < 20_000_000
