from __future__ import annotations

import resource
from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from atp_export.trace import SCOPE, Argument, Piece, trace


class Block(nn.Module):
    """A linear layer in a submodule, a norm's weight, a reshape to heads and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"proj": nn.Linear(width, 2 * width)})
        self.weight = nn.Parameter(torch.empty(width))
        self.unused = nn.Parameter(torch.empty(3))

    def forward(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        y = self.inner["proj"](x * self.weight).unflatten(2, (4, -1))
        return y.flatten(2), torch.cat((x, other), dim=1)


class Positions(nn.Module):
    """Has a buffer that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 8)
        self.register_buffer("position_ids", torch.arange(6).expand(1, -1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(self.position_ids)


def traced(build: Callable[[], nn.Module], *arguments: Argument, dtype: torch.dtype) -> Piece:
    return trace("Piece", build, arguments, ["a", "b"][: len(arguments)], dtype=dtype, opset=18)


@pytest.fixture(scope="module")
def block() -> Piece:
    return traced(
        lambda: Block(8),
        Argument("x", (1, "kept", 8), torch.float16),
        Argument("other", (1, "past", 8), torch.float16),
        dtype=torch.float16,
    )


def test_weights_are_inputs_behind_the_activations(block: Piece) -> None:
    names = [value.name for value in block.function.inputs]
    assert names[:2] == ["x", "other"]
    assert sorted(names[2:]) == ["inner.proj.bias", "inner.proj.weight", "weight"]
    assert [weight.name for weight in block.weights] == names[2:]


def test_weights_have_the_dtype_that_was_asked_for(block: Piece) -> None:
    assert {weight.dtype for weight in block.weights} == {torch.float16}


def test_a_matrix_that_is_only_transposed_is_wanted_transposed(block: Piece) -> None:
    by_name = {weight.name: weight for weight in block.weights}
    matrix = by_name["inner.proj.weight"]
    assert (matrix.shape, matrix.transposed) == ((8, 16), True)
    assert not by_name["weight"].transposed
    assert "Transpose" not in [node.op_type for node in block.function]


def test_reshapes_are_constant_where_one_axis_is_dynamic(block: Piece) -> None:
    operators = [node.op_type for node in block.function]
    assert "Reshape" in operators
    assert "Shape" not in operators


def test_outputs_come_in_the_order_of_the_module(block: Piece) -> None:
    shapes = [value.shape for value in block.function.outputs]
    assert [len(shape) for shape in shapes] == [3, 3]
    assert [shape[2] for shape in shapes] == [16, 8]


def test_nodes_know_the_submodule_they_come_from(block: Piece) -> None:
    scopes = {node.op_type: node.metadata_props.get(SCOPE, "") for node in block.function}
    assert scopes["MatMul"] == "inner.proj"
    assert scopes["Concat"] == ""


def test_a_function_has_no_initialisers(block: Piece) -> None:
    assert not block.function.graph.initializers


def test_index_buffers_keep_their_values() -> None:
    piece = traced(Positions, Argument("x", (1, 6, 8), torch.float32), dtype=torch.float32)
    constants = [
        node.attributes["value"].as_tensor().numpy().tolist()
        for node in piece.function
        if node.op_type == "Constant"
    ]
    assert [[0, 1, 2, 3, 4, 5]] in constants
    assert [weight.name for weight in piece.weights] == ["table.weight"]


def test_tracing_a_module_of_a_hundred_gigabytes_takes_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    piece = traced(
        lambda: nn.Linear(160_000, 160_000, bias=False),
        Argument("x", (1, "kept", 160_000), torch.float32),
        dtype=torch.float32,
    )
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert piece.weights[0].shape == (160_000, 160_000)
    assert grown * 1024 < 1e9


def test_tracing_leaves_no_trace_on_the_screen_nor_in_the_default_dtype(
    capfd: pytest.CaptureFixture[str],
) -> None:
    traced(
        lambda: nn.Linear(8, 8),
        Argument("x", ("kept", 8), torch.float16),
        dtype=torch.float16,
    )
    assert capfd.readouterr() == ("", "")
    assert torch.get_default_dtype() == torch.float32


def test_tracing_twice_gives_the_same_function() -> None:
    def text() -> str:
        piece = traced(
            lambda: Block(8),
            Argument("x", (1, "kept", 8), torch.float32),
            Argument("other", (1, "past", 8), torch.float32),
            dtype=torch.float32,
        )
        return ir.serde.serialize_function(piece.function).SerializeToString().hex()

    assert text() == text()
