"""The operators of both dialects, alone, against plain formulas through ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from atp_export.graphs.dialects import DIALECTS, Dialect, grouped_scores
from atp_export.signatures import Signature
from atp_export.stage_graph import StageBuilder
from atp_export.trace import Argument, trace
from atp_runtime.manifest import TensorSpec

HEADS, KV_HEADS, HEAD_DIM, EPS = 6, 2, 8, 1e-5
INPUTS = {
    "q": (1, "kept", HEADS, HEAD_DIM),
    "k": (1, "past", KV_HEADS, HEAD_DIM),
    "v": (1, "past", KV_HEADS, HEAD_DIM),
    "angles": (1, "kept", HEAD_DIM // 2),
}
OUTPUTS = {
    "normed": (1, "kept", HEADS, HEAD_DIM),
    "rotated": (1, "kept", HEADS, HEAD_DIM),
    "masked": (1, "kept", HEADS * HEAD_DIM),
    "open": (1, "kept", HEADS * HEAD_DIM),
}


class Operators(nn.Module):
    """All operators of a dialect side by side."""

    def __init__(self, dialect: Dialect) -> None:
        super().__init__()
        self.dialect = dialect
        self.weight = nn.Parameter(torch.empty(HEAD_DIM))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, angles: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Query i sees all keys but the last few, which a causal mask would hide from it.
        reach = torch.arange(k.shape[1]).unsqueeze(0)
        position = torch.arange(q.shape[1]).unsqueeze(1) + k.shape[1] - q.shape[1]
        mask = self.dialect.mask(position >= reach)
        return (
            self.dialect.rms_norm(q, self.weight, EPS),
            self.dialect.rotate(q, angles.cos(), angles.sin()),
            self.dialect.attend(q, k, v, mask),
            self.dialect.attend(q, k, v, None),
        )


@pytest.fixture(scope="module", params=sorted(DIALECTS))
def session(request: pytest.FixtureRequest) -> onnxruntime.InferenceSession:
    dialect = DIALECTS[request.param]
    arguments = [Argument(name, shape, torch.float32) for name, shape in INPUTS.items()]
    piece = trace(
        "Operators",
        lambda: Operators(dialect),
        arguments,
        list(OUTPUTS),
        dtype=torch.float32,
        opset=dialect.opset,
    )
    signature = Signature(
        *(
            tuple(TensorSpec(name, "float32", shape) for name, shape in specs.items())
            for specs in (INPUTS, OUTPUTS)
        )
    )
    builder = StageBuilder("operators", signature, opset=dialect.opset)
    values = builder.call(piece, list(builder.inputs.values()), label="")
    graph = builder.finish(dict(zip(OUTPUTS, values, strict=True)))
    model = ir.serde.serialize_model(graph.model).SerializeToString()
    return onnxruntime.InferenceSession(model)


WEIGHT = np.linspace(0.5, 2, HEAD_DIM, dtype=np.float32)


def run(session: onnxruntime.InferenceSession, kept: int, key: int) -> dict[str, np.ndarray]:
    """Inputs and outputs of one run on random numbers."""
    lengths = {"kept": kept, "past": key}
    rng = np.random.default_rng(kept + 100 * key)
    inputs = {
        name: rng.normal(size=[lengths.get(str(size), size) for size in shape]).astype(np.float32)
        for name, shape in INPUTS.items()
    }
    outputs = session.run(list(OUTPUTS), {**inputs, "weight": WEIGHT})
    return {**inputs, **dict(zip(OUTPUTS, outputs, strict=True))}


def attention(values: dict[str, np.ndarray], *, causal: bool) -> np.ndarray:
    q, k, v = (values[name][0].astype(np.float64) for name in "qkv")
    mixed = []
    for head in range(HEADS):
        shared = head // (HEADS // KV_HEADS)
        scores = q[:, head] @ k[:, shared].T / np.sqrt(HEAD_DIM)
        if causal:
            scores[np.triu_indices(len(q), len(k) - len(q) + 1, len(k))] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed.append(weights / weights.sum(-1, keepdims=True) @ v[:, shared])
    return np.concatenate(mixed, -1)[None]


LENGTHS = pytest.mark.parametrize(("kept", "key"), [(1, 1), (1, 9), (4, 4), (3, 12)])


@LENGTHS
def test_attend_is_softmax_attention_with_shared_keys(
    session: onnxruntime.InferenceSession, kept: int, key: int
) -> None:
    values = run(session, kept, key)
    np.testing.assert_allclose(values["open"], attention(values, causal=False), atol=1e-5)


@LENGTHS
def test_attend_sees_nothing_that_the_mask_hides(
    session: onnxruntime.InferenceSession, kept: int, key: int
) -> None:
    values = run(session, kept, key)
    np.testing.assert_allclose(values["masked"], attention(values, causal=True), atol=1e-5)


@LENGTHS
def test_rotate_turns_pairs_of_the_two_halves(
    session: onnxruntime.InferenceSession, kept: int, key: int
) -> None:
    values = run(session, kept, key)
    half = HEAD_DIM // 2
    pairs = values["q"][..., :half] + 1j * values["q"][..., half:]
    turned = pairs * np.exp(1j * values["angles"])[:, :, None]
    expected = np.concatenate((turned.real, turned.imag), -1)
    np.testing.assert_allclose(values["rotated"], expected, atol=1e-5)


@LENGTHS
def test_rms_norm_divides_by_the_root_of_the_mean_square(
    session: onnxruntime.InferenceSession, kept: int, key: int
) -> None:
    values = run(session, kept, key)
    scale = np.sqrt(np.mean(values["q"] ** 2, -1, keepdims=True) + EPS)
    np.testing.assert_allclose(values["normed"], values["q"] / scale * WEIGHT, atol=1e-5)


def test_the_scale_keeps_scores_of_large_fp16_queries_finite() -> None:
    q = torch.full((1, 2, HEADS, 64), 60.0, dtype=torch.float16)
    k = torch.full((1, 3, KV_HEADS, 64), 60.0, dtype=torch.float16)
    # 64 * 60 * 60 is beyond FP16, an eighth of it is not.
    assert grouped_scores(q, k).unique().tolist() == [28800.0]


def test_a_row_that_sees_nothing_is_an_average_in_the_portable_dialect() -> None:
    dialect = DIALECTS["portable"]
    q, k = torch.randn(1, 1, HEADS, HEAD_DIM), torch.randn(1, 4, KV_HEADS, HEAD_DIM)
    hidden = dialect.mask(torch.zeros(1, 4, dtype=torch.bool))
    mixed = dialect.attend(q, k, k, hidden)
    average = k[0].mean(0).repeat_interleave(HEADS // KV_HEADS, 0).flatten()
    torch.testing.assert_close(mixed.flatten(), average)


def test_portable_needs_no_operator_set_beyond_20_and_native_needs_24() -> None:
    assert DIALECTS["portable"].opset <= 20
    assert DIALECTS["native"].opset == 24
