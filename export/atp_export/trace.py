"""From a module on fake tensors to a `Piece`: a small ONNX function whose weights are inputs.

Tracing allocates nothing: parameters are fake tensors, so a layer of a 7B model traces in the
same second and memory as a toy. The weights get their values when a stage is written.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir.passes import common as passes
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

DOMAIN = "atp"
# Metadata of a node: the submodule it comes from, as `self_attn.q_proj`.
SCOPE = "scope"


@dataclass(frozen=True)
class Weight:
    """A parameter of a piece.

    Attributes:
        name: The parameter's name in the module, and so in the checkpoint below a prefix.
        shape: As the graph uses it.
        dtype: As the graph uses it.
        transposed: The graph wants the checkpoint's matrix [out, in] as [in, out].
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    transposed: bool


@dataclass(frozen=True)
class Piece:
    """A traced module.

    Attributes:
        function: Inputs are the activations in the module's order, then the weights.
        weights: In the order of the function's remaining inputs.
    """

    function: ir.Function
    weights: tuple[Weight, ...]


@dataclass(frozen=True)
class Argument:
    """An example input: a string in `shape` is a dynamic axis, or a sum such as "past + 8"."""

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype


def trace(
    name: str,
    build: Callable[[], nn.Module],
    arguments: Sequence[Argument],
    outputs: Sequence[str],
    *,
    dtype: torch.dtype,
    opset: int,
) -> Piece:
    """Traces a module into a piece.

    Args:
        name: The function's name.
        build: Makes the module; called on the meta device.
        arguments: The activations.
        outputs: Names for what the module returns.
        dtype: Of the module's parameters.
        opset: The ONNX operator set to write.
    """
    # Built on the meta device, because constructors may read values that fake tensors lack.
    with torch.device("meta"), _default_dtype(dtype):
        module = build().eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        _make_fake(module)
        example = tuple(_example(argument) for argument in arguments)
    _restore_index_buffers(module)
    dynamic = inspect.signature(module.forward).bind(*map(_dynamic_axes, arguments)).arguments
    with _quiet(), torch.no_grad():
        program = torch.export.export(module, example, dynamic_shapes=dynamic, strict=False)
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=[argument.name for argument in arguments],
            output_names=list(outputs),
            optimize=False,
            verbose=False,
        )
    if converted is None:
        raise RuntimeError(f"torch.onnx.export returned no program for {name}")
    return _as_piece(name, converted.model, [argument.name for argument in arguments])


# One size per axis, different and above one: torch.export specialises on 0, 1 and equal sizes.
EXAMPLE_SIZES = {
    "tokens": 11,
    "kept": 7,
    "merged": 4,
    "past": 5,
    "rows": 3,
    "images": 2,
    "selected": 9,
    "others": 13,
    "visual": 17,
    "blocks": 19,
}


def _example(argument: Argument) -> torch.Tensor:
    shape = [_example_size(size) if isinstance(size, str) else size for size in argument.shape]
    return torch.zeros(shape, dtype=argument.dtype)


def _example_size(axis: str) -> int:
    parts = axis.split(" + ")
    return sum(int(part) if part.isdigit() else EXAMPLE_SIZES[part] for part in parts)


def _dynamic_axes(argument: Argument) -> dict[int, object]:
    named = (axis for axis, size in enumerate(argument.shape) if isinstance(size, str))
    return dict.fromkeys(named, torch.export.Dim.DYNAMIC)


def _make_fake(module: nn.Module) -> None:
    """Moves meta tensors to the CPU as fake tensors: still no memory, but a device to trace on."""
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            fake = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(owner, name, nn.Parameter(fake, requires_grad=False))
        for name, buffer in owner.named_buffers(recurse=False):
            setattr(owner, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _restore_index_buffers(module: nn.Module) -> None:
    """Gives `position_ids` buffers their values back: they are in no checkpoint."""
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if name == "position_ids":
                setattr(owner, name, torch.arange(buffer.numel()).reshape(tuple(buffer.shape)))


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def _as_piece(name: str, model: ir.Model, arguments: list[str]) -> Piece:
    graph = model.graph
    parameters = _weights_to_inputs(graph)
    _make_reshapes_static(graph)
    onnxscript.optimizer.optimize_ir(model)
    passes.CommonSubexpressionEliminationPass()(model)
    weights = [
        _fold_transpose(graph, value, weight) for value, weight in parameters if value.uses()
    ]
    for value in [v for v in graph.inputs if v.name not in arguments and not v.uses()]:
        graph.inputs.remove(value)
    _initializers_to_constants(graph)
    _keep_scopes(graph)
    graph.opset_imports.update(model.opset_imports)
    function = ir.Function(DOMAIN, name, graph=graph, attributes=[])
    return Piece(function, tuple(weights))


def _weights_to_inputs(graph: ir.Graph) -> list[tuple[ir.Value, Weight]]:
    weights = []
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        raw = getattr(tensor, "raw", None)
        if isinstance(raw, torch.Tensor) and type(raw) not in (torch.Tensor, nn.Parameter):
            shape = tuple(int(size) for size in raw.shape)
            weight = Weight(str(value.name), shape, raw.dtype, transposed=False)
            weights.append((value, weight))
            del graph.initializers[str(value.name)]
            value.const_value = None
            graph.inputs.append(value)
    return weights


def _initializers_to_constants(graph: ir.Graph) -> None:
    """A function has no initialisers; what is left of them are small constants."""
    for value in list(graph.initializers.values()):
        constant = ir.node("Constant", [], {"value": value.const_value})
        constant.outputs[0].name = value.name
        del graph.initializers[str(value.name)]
        graph.insert_before(graph[0], constant)
        value.replace_all_uses_with(constant.outputs[0])


def _keep_scopes(graph: ir.Graph) -> None:
    """Of the exporter's remarks on a node keeps which submodule it comes from."""
    scope = ""
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        node.metadata_props.clear()
        # The last one is the operation. Nodes that an optimisation made have none, and belong
        # with the one before; what is in no module has a made-up one.
        scope = scopes[-2] if len(scopes) > 1 else scope
        if not scope.startswith("_empty"):
            node.metadata_props[SCOPE] = scope


def _fold_transpose(graph: ir.Graph, value: ir.Value, weight: Weight) -> Weight:
    """Where all that is done to a matrix is to transpose it, stores it transposed."""
    consumers = list(value.consumers())
    if any(node.op_type != "Transpose" for node in consumers):
        return weight
    for node in consumers:
        node.outputs[0].replace_all_uses_with(value)
        graph.remove(node, safe=True)
    value.shape = ir.Shape(reversed(weight.shape))
    return Weight(weight.name, tuple(reversed(weight.shape)), weight.dtype, transposed=True)


def _make_reshapes_static(graph: ir.Graph) -> None:
    """Replaces shape arithmetic by a constant with one -1, where one axis at most is dynamic."""
    for node in list(graph):
        shape = node.outputs[0].shape
        if node.op_type != "Reshape" or shape is None:
            continue
        dynamic = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
        if len(dynamic) > 1:
            continue
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        constant = ir.node("Constant", [], {"value": ir.tensor(np.array(sizes, dtype=np.int64))})
        graph.insert_before(node, constant)
        node.replace_input_with(1, constant.outputs[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's remarks about missing torchvision and deprecations off the screen."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
