from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st

from atp_runtime.profiling.ceiling import measure_ceiling
from atp_runtime.profiling.matmul_graph import matmul_graph


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 5))
def test_the_graph_is_a_matrix_product(width: int, out: int, rows: int) -> None:
    generator = np.random.default_rng(width * 1000 + out)
    weight = generator.normal(size=(width, out)).astype(np.float32)
    x = generator.normal(size=(rows, width)).astype(np.float32)
    graph = matmul_graph(weight)
    onnx.checker.check_model(graph, full_check=True)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (found,) = session.run(["y"], {"x": x})
    np.testing.assert_allclose(found, x @ weight, rtol=1e-4, atol=1e-3)


def test_a_large_product_makes_more_of_each_byte_than_a_row() -> None:
    ceiling = measure_ceiling(1)
    # A core of any machine that runs this: above a GFLOP/s and 0.5 GB/s, below what none has.
    assert 1 < ceiling.gflops < 1e4
    assert 0.5 < ceiling.gbps < 1e3
    # A row of float32 has half an operation per byte; a product of 640 rows is not bound by that.
    assert ceiling.gflops > ceiling.gbps / 2
