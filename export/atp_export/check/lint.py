"""Reads graphs with the eyes of TensorRT 10.3, whose parser runs on JetPack 6 only.

TensorRT-RTX has a newer parser, so what it accepts says nothing about operators that came
later. The list is that of the ONNX parser for TensorRT 10.1 (its docs/operators.md); later
releases only added to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

OPSETS = range(9, 21)
# The parser's list has INT4, and ONNX has it from this opset on.
INT4_OPSET = 21
IR_VERSIONS = range(3, 11)
_TYPES = frozenset({"FLOAT", "FLOAT16", "BFLOAT16", "INT32", "INT64", "INT8", "INT4", "BOOL"})
# Inputs that have to be stored in the graph, by operator and place.
_STORED_INPUTS = {
    "CumSum": 1, "ReduceL1": 1, "ReduceL2": 1, "ReduceMax": 1, "ReduceMean": 1, "ReduceMin": 1,
    "ReduceProd": 1, "ReduceSum": 1, "ReduceSumSquare": 1, "Slice": 3, "Squeeze": 1,
    "Unsqueeze": 1,
}  # fmt: skip
OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization
    Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh
    CumSum DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand
    EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
    GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization GRU
    HardSigmoid HardSwish Hardmax Identity If ImageScaler InstanceNormalization IsInf IsNaN
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN LSTM LpNormalization
    LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg
    NonMaxSuppression NonZero Not OneHot Or Pad ParametricSoftplus Pow PRelu QuantizeLinear
    RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1
    ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Reshape Resize ReverseSequence RNN RoiAlign Round ScaledTanh Scan
    Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice
    Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu
    Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905 - 150 quoted names would fill two screens
)


def lint(model: onnx.ModelProto) -> tuple[str, ...]:
    """What TensorRT 10.3's parser is not documented to take, a line each; empty if nothing.

    Args:
        model: A stage's graph; its weights need not be loaded.
    """
    return tuple(dict.fromkeys(_complaints(model)))


def _complaints(model: onnx.ModelProto) -> Iterator[str]:
    if model.ir_version not in IR_VERSIONS:
        yield f"IR version {model.ir_version}: {IR_VERSIONS[-1]} is the newest"
    stores_int4 = any(it.data_type == onnx.TensorProto.INT4 for it in model.graph.initializer)
    for opset in model.opset_import:
        if opset.domain:
            yield f"operators of the domain {opset.domain!r}"
        elif opset.version not in OPSETS and not (stores_int4 and opset.version == INT4_OPSET):
            yield f"opset {opset.version}: {OPSETS[-1]} is the newest"
    stored = {tensor.name for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        if kind not in _TYPES:
            yield f"{tensor.name}: type {kind}"
    for node in model.graph.node:
        yield from _of_node(node, stored)


def _of_node(node: onnx.NodeProto, stored: set[str]) -> Iterator[str]:
    if node.op_type not in OPERATORS:
        yield f"operator {node.op_type}"
    place = _STORED_INPUTS.get(node.op_type)
    given = node.input[place] if place is not None and place < len(node.input) else ""
    if given and given not in stored:
        yield f"{node.name}: input {place} of {node.op_type} is computed, it has to be stored"
    if node.op_type == "LayerNormalization" and any(node.output[1:]):
        yield f"{node.name}: LayerNormalization with more than one output"
