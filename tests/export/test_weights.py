from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from atp_export.compose import StageComposer
from atp_export.plan import HeadPlan
from atp_export.stage_graph import StageWeight
from atp_export.weights import (
    ALIGNMENT,
    Placement,
    TensorSource,
    attach,
    npy_header,
    place,
    write_weights,
)
from atp_models.architecture import ModelSpec
from atp_models.checkpoint import Checkpoint
from atp_runtime.errors import CheckFailedError

MATRIX = "model.language_model.layers.0.mlp.up_proj.weight"
STORED = "language_model.model.layers.0.mlp.up_proj.weight"


def a_weight(
    name: str, *shape: int, dtype: torch.dtype = torch.float32, transposed: bool = False
) -> StageWeight:
    return StageWeight(name, name, shape, dtype, transposed)


def nothing(_count: int) -> None:
    """Reports no progress."""


def read_as(source: TensorSource, weight: StageWeight) -> torch.Tensor:
    into = torch.empty(weight.shape, dtype=weight.dtype)
    source.read(weight, into)
    return into


@pytest.fixture
def source_of(own_checkpoint: Path, spec: ModelSpec) -> Callable[..., TensorSource]:
    """The source of a checkpoint in which `MATRIX` is replaced."""

    def make(matrix: torch.Tensor) -> TensorSource:
        file = own_checkpoint / "model.safetensors"
        tensors = load_file(file)
        assert STORED in tensors
        save_file({**tensors, STORED: matrix.contiguous()}, file, metadata={"format": "pt"})
        return TensorSource(Checkpoint.open(own_checkpoint), spec)

    return make


shapes = st.lists(st.lists(st.integers(1, 70), min_size=1, max_size=3), max_size=8)


@given(shapes, st.sampled_from([torch.float32, torch.float16]))
def test_weights_lie_on_pages_one_after_the_other(
    sizes: list[list[int]], dtype: torch.dtype
) -> None:
    weights = [a_weight(str(i), *shape, dtype=dtype) for i, shape in enumerate(sizes)]
    placements, total = place(weights)
    end = 0
    for placement, weight in zip(placements, weights, strict=True):
        assert placement.weight is weight
        assert placement.offset % ALIGNMENT == 0
        assert 0 <= placement.offset - end < ALIGNMENT
        end = placement.offset + weight.nbytes
    assert total == end


@given(shapes, st.binary(max_size=200))
def test_a_data_file_holds_every_weight_where_it_was_placed(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], header: bytes
) -> None:
    path = tmp_path_factory.mktemp("data") / "stage.data"
    weights = [a_weight(str(i), *shape) for i, shape in enumerate(sizes)]
    values = {w.name: torch.randn(w.shape) for w in weights}
    placements, _ = place(weights)
    shifted = [Placement(p.weight, p.offset + len(header)) for p in placements]
    advanced: list[int] = []

    def read(weight: StageWeight, into: torch.Tensor) -> None:
        into.copy_(values[weight.name])

    record = write_weights(path, shifted, read, advanced.append, header=header)
    data = path.read_bytes()
    assert data.startswith(header)
    for placement in shifted:
        wanted = values[placement.weight.name].numpy()
        found = np.frombuffer(data, wanted.dtype, wanted.size, placement.offset)
        np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)
    assert record.bytes == len(data) == sum(advanced)
    assert record.sha256 == hashlib.sha256(data).hexdigest()


def test_gaps_between_weights_are_zero(tmp_path: Path) -> None:
    placements, _ = place([a_weight("a", 3), a_weight("b", 1)])
    path = tmp_path / "data"

    def read(_weight: StageWeight, into: torch.Tensor) -> None:
        into.fill_(1.0)

    write_weights(path, placements, read, nothing)
    assert not any(path.read_bytes()[12:4096])


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float16])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_is_converted_and_transposed_as_the_graph_wants(
    source_of: Callable[..., TensorSource],
    stored: torch.dtype,
    wanted: torch.dtype,
    transposed: bool,
) -> None:
    matrix = torch.randn(128, 64).to(stored)
    source = source_of(matrix)
    shape = (64, 128) if transposed else (128, 64)
    found = read_as(source, a_weight(MATRIX, *shape, dtype=wanted, transposed=transposed))
    expected = matrix.double().t() if transposed else matrix.double()
    torch.testing.assert_close(found.double(), expected, rtol=2**-11, atol=2**-25)


def test_values_of_float32_that_fp16_cannot_hold_are_refused_by_name(
    source_of: Callable[..., TensorSource],
) -> None:
    matrix = torch.zeros(128, 64)
    matrix[5, 6] = -70000.0
    source = source_of(matrix)
    with pytest.raises(CheckFailedError) as caught:
        read_as(source, a_weight(MATRIX, 128, 64, dtype=torch.float16))
    assert MATRIX in caught.value.what
    assert "7e+04" in caught.value.what
    assert "65504" in caught.value.why
    assert "--precision fp32" in caught.value.fix
    assert read_as(source, a_weight(MATRIX, 128, 64))[5, 6] == -70000.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_nan_and_infinity_are_refused_by_name_in_any_precision(
    source_of: Callable[..., TensorSource],
    value: float,
    dtype: torch.dtype,
    precision: torch.dtype,
) -> None:
    matrix = torch.zeros(128, 64, dtype=dtype)
    matrix[127, 63] = value
    with pytest.raises(CheckFailedError, match="NaN or infinity, in 1 of its 8192") as caught:
        read_as(source_of(matrix), a_weight(MATRIX, 128, 64, dtype=precision))
    assert MATRIX in caught.value.what


def test_rotary_frequencies_come_from_the_spec(checkpoint: Path, spec: ModelSpec) -> None:
    source = TensorSource(Checkpoint.open(checkpoint), spec)
    found = read_as(source, a_weight("rope.inv_freq", 8))
    expected = [10000.0 ** (-2 * i / 16) for i in range(8)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_a_full_disk_ends_the_writing_with_the_files_name() -> None:
    placements, _ = place([a_weight(str(i), 1 << 20) for i in range(4)])
    reads: list[str] = []
    before = threading.active_count()
    with pytest.raises(OSError, match="No space left") as caught:
        write_weights(
            Path("/dev/full"), placements, lambda weight, _into: reads.append(weight.name), nothing
        )
    assert caught.value.filename == "/dev/full"
    # Of the tensors after the one that could not be written, one more may be under way.
    assert reads in (["0"], ["0", "1"])
    assert threading.active_count() == before


def test_an_error_while_reading_ends_the_writing(tmp_path: Path) -> None:
    placements, _ = place([a_weight(str(i), 1 << 10) for i in range(4)])

    def read(weight: StageWeight, _into: torch.Tensor) -> None:
        if weight.name == "2":
            raise CheckFailedError("no", why="no.", fix="no.")

    before = threading.active_count()
    with pytest.raises(CheckFailedError):
        write_weights(tmp_path / "data", placements, read, nothing)
    assert threading.active_count() == before


def test_interruption_ends_the_writing_at_once(tmp_path: Path) -> None:
    placements, _ = place([a_weight(str(i), 1 << 10) for i in range(100)])
    reads: list[str] = []

    def read(weight: StageWeight, _into: torch.Tensor) -> None:
        reads.append(weight.name)
        if len(reads) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_weights(tmp_path / "data", placements, read, nothing)
    assert len(reads) == 3


def test_pytorch_has_its_threads_back_afterwards(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    placements, _ = place([a_weight("a", 3)])
    write_weights(tmp_path / "data", placements, lambda _weight, _into: None, nothing)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_memory_is_that_of_two_tensors_however_many_there_are() -> None:
    size = 64 << 20
    placements, _ = place([a_weight(str(i), size // 4) for i in range(12)])
    buffers = set()

    def read(weight: StageWeight, into: torch.Tensor) -> None:
        buffers.add(into.data_ptr())
        into.fill_(float(weight.name))

    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    before = memory("VmRSS")
    write_weights(Path("/dev/null"), placements, read, nothing)
    assert len(buffers) == 2
    assert 1.9 < (memory("VmHWM") - before) / size < 2.2


def memory(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_npy_header_makes_a_file_that_numpy_maps(tmp_path: Path, dtype: type) -> None:
    header = npy_header((3, 5), np.dtype(dtype))
    values = np.arange(15, dtype=dtype).reshape(3, 5)
    (tmp_path / "a.npy").write_bytes(header + values.tobytes())
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert len(header) % 64 == 0
    assert mapped.dtype == dtype
    np.testing.assert_array_equal(mapped, values)


def test_attach_turns_weight_inputs_into_references_and_leaves_the_graph_as_it_was(
    composer: Callable[[str, str], StageComposer],
) -> None:
    graph = composer("portable", "fp32").head(HeadPlan("head", 0, 512))
    locations = [("a.data", 4096 * (i + 1)) for i in range(len(graph.weights))]
    model = attach(graph, locations)
    assert [value.name for value in model.graph.inputs] == ["hidden_states"]
    for weight, (file, offset) in zip(graph.weights, locations, strict=True):
        tensor = model.graph.initializers[weight.name].const_value
        assert (tensor.location, tensor.offset) == (file, offset)
        assert tensor.length == weight.nbytes
    assert len(graph.model.graph.inputs) == 1 + len(graph.weights)
