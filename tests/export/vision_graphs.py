"""What is in the graph of a vision stage."""

from __future__ import annotations

import onnx_ir as ir
from onnx import shape_inference

from atp_export.stage_graph import StageGraph


def squares(graph: StageGraph, patches: int) -> int:
    """How many values of a vision graph have two axes as long as a sequence of patches."""
    model = ir.serde.serialize_model(graph.model)
    for value in (*model.graph.input, *model.graph.output):
        axis = value.type.tensor_type.shape.dim[0]
        if axis.dim_param:
            axis.dim_value = 1
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    values = [it.type.tensor_type.shape.dim for it in (*inferred.value_info, *inferred.output)]
    assert len(values) > len(inferred.node) // 2
    lengths = {patches, patches + 1}
    return sum(sum(axis.dim_value in lengths for axis in shape) >= 2 for shape in values)
