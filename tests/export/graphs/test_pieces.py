"""Segments and the head against the formulas of LLaMA and ATP, through ONNX Runtime.

What runs are the composed graphs with their weights as inputs, so that the numbers of this file
go in and nothing of a checkpoint does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor

from atp_export.compose import StageComposer
from atp_export.plan import HeadPlan
from atp_export.stage_graph import StageGraph
from atp_models.architecture import ModelSpec
from atp_runtime.tensor_names import SCORES

Composers = Callable[[str, str], StageComposer]
Weights = dict[str, Tensor]

FIRST, LAST = 1, 3
# tokens entering, tokens kept, past, text rows
MIXES = [
    (7, 7, 0, 3),
    (7, 4, 0, 1),
    (9, 5, 6, 2),
    (5, 5, 5, 5),
    (3, 1, 0, 1),
    (1, 1, 0, 1),
    (1, 1, 9, 1),
    (40, 12, 30, 8),
]
TOLERANCES = {"fp32": 2e-5, "fp16": 2e-2}


def random_weights(graph: StageGraph, seed: int) -> Weights:
    """In float32, of the graph's shapes, of a size that keeps activations near one."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for weight in graph.weights:
        values = torch.randn(weight.shape, generator=generator)
        if weight.name == "rope.inv_freq":
            values = 10000.0 ** -torch.linspace(0, 0.9, weight.shape[0])
        elif len(weight.shape) == 1:
            values = 1 + 0.1 * values
        else:
            values = values / max(weight.shape) ** 0.5
        # What FP16 holds, so that both precisions compute with the same numbers.
        weights[weight.name] = values if "rope" in weight.name else values.half().float()
    return weights


class Runner:
    """A composed stage in ONNX Runtime, with random weights."""

    def __init__(self, graph: StageGraph, weights: Weights) -> None:
        model = ir.serde.serialize_model(graph.model).SerializeToString()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(model, options)
        self._feeds = {
            weight.name: weights[weight.name].to(weight.dtype).numpy() for weight in graph.weights
        }
        self._dtypes = {spec.name: spec.dtype for spec in graph.signature.inputs}

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {name: x.numpy().astype(self._dtypes[name]) for name, x in inputs.items()}
        names = [output.name for output in self._session.get_outputs()]
        values = self._session.run(names, {**self._feeds, **given})
        return {
            name: torch.from_numpy(value).float() for name, value in zip(names, values, strict=True)
        }


@pytest.fixture(scope="module")
def weights(composer: Composers) -> Weights:
    """For a scored segment of the layers FIRST to LAST - 1."""
    graph = composer("portable", "fp32").segment("segment", FIRST, LAST, scores=SCORES)
    return random_weights(graph, seed=1)


@pytest.fixture(scope="module")
def segment(composer: Composers, weights: Weights) -> Callable[[str, str], Runner]:
    runners: dict[tuple[str, str], Runner] = {}

    def get(dialect: str, precision: str) -> Runner:
        key = (dialect, precision)
        if key not in runners:
            graph = composer(*key).segment("segment", FIRST, LAST, scores=SCORES)
            runners[key] = Runner(graph, weights)
        return runners[key]

    return get


def random_inputs(spec: ModelSpec, tokens: int, kept: int, past: int, rows: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1000 * tokens + 100 * kept + 10 * past + rows)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).half().float()

    text = spec.text
    keep = torch.randperm(tokens, generator=generator)[:kept].sort().values
    # Positions with gaps, as they are after pruning.
    gaps = torch.randint(1, 4, (kept,), generator=generator)
    visual = torch.randint(0, 2, (kept,), generator=generator).float()
    inputs = {
        "hidden_states": normal(1, tokens, text.hidden),
        "keep_indices": keep,
        "position_ids": (past * 2 + gaps.cumsum(0)).unsqueeze(0),
        "past_length": torch.tensor([past]),
        "visual_weights": visual / visual.sum().clamp(min=1),
        "text_rows": torch.randperm(kept, generator=generator)[:rows].sort().values,
        "text_weights": torch.full((rows,), 1 / rows),
    }
    for layer in range(FIRST, LAST):
        for kind in ("key", "value"):
            inputs[f"past_key_values.{layer}.{kind}"] = normal(
                1, past, text.kv_heads, text.head_dim
            )
    return inputs


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rotate(x: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
    """RoPE as a rotation of complex numbers: x [kept, heads, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    angle = positions[:, None, None] * inv_freq
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), -1)


def formula(spec: ModelSpec, weights: Weights, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """What a scored segment computes, in float64, one head at a time."""
    text, out = spec.text, {}
    weights = {name: value.double() for name, value in weights.items()}
    positions = inputs["position_ids"][0].double()
    x = inputs["hidden_states"][0, inputs["keep_indices"]].double()
    kept, past = len(x), inputs[f"past_key_values.{FIRST}.key"].shape[1]
    visible = torch.ones(kept, past + kept, dtype=torch.bool)
    visible[:, past:] = positions[:, None] >= positions[None]
    for layer in range(FIRST, LAST):
        w = {
            name.partition(f"layers.{layer}.")[2]: value
            for name, value in weights.items()
            if f"layers.{layer}." in name
        }
        normed = rms_norm(x, w["input_layernorm.weight"], text.rms_norm_eps)
        query = (normed @ w["self_attn.q_proj.weight"]).unflatten(1, (text.heads, -1))
        key = (normed @ w["self_attn.k_proj.weight"]).unflatten(1, (text.kv_heads, -1))
        value = (normed @ w["self_attn.v_proj.weight"]).unflatten(1, (text.kv_heads, -1))
        query = rotate(query, positions, weights["rope.inv_freq"])
        key = rotate(key, positions, weights["rope.inv_freq"])
        keys = torch.cat((inputs[f"past_key_values.{layer}.key"][0].double(), key))
        values = torch.cat((inputs[f"past_key_values.{layer}.value"][0].double(), value))
        mixed, raw, attention = [], [], []
        for head in range(text.heads):
            shared = head * text.kv_heads // text.heads
            scores = query[:, head] @ keys[:, shared].T / text.head_dim**0.5
            raw.append(scores)
            attention.append(scores.masked_fill(~visible, float("-inf")).softmax(-1))
            mixed.append(attention[-1] @ values[:, shared])
        x = x + torch.cat(mixed, -1) @ w["self_attn.o_proj.weight"]
        normed = rms_norm(x, w["post_attention_layernorm.weight"], text.rms_norm_eps)
        gate = torch.nn.functional.silu(normed @ w["mlp.gate_proj.weight"])
        up = normed @ w["mlp.up_proj.weight"]
        x = x + (gate * up) @ w["mlp.down_proj.weight"]
        out[f"present.{layer}.key"] = key[None]
        out[f"present.{layer}.value"] = value[None]
    received = torch.stack(raw).mean(0)[:, past:]
    seen = torch.stack(attention).mean(0)[inputs["text_rows"]][:, past:]
    return {
        **out,
        "hidden_states_out": x[None],
        "scores.self": inputs["visual_weights"].double() @ received,
        "scores.cross": inputs["text_weights"].double() @ seen,
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("dialect", ["portable", "native"])
@pytest.mark.parametrize(("tokens", "kept", "past", "rows"), MIXES)
def test_a_segment_computes_the_formulas_for_any_mix_of_lengths(
    spec: ModelSpec,
    segment: Callable[[str, str], Runner],
    weights: Weights,
    dialect: str,
    precision: str,
    tokens: int,
    kept: int,
    past: int,
    rows: int,
) -> None:
    inputs = random_inputs(spec, tokens, kept, past, rows)
    found = segment(dialect, precision)(inputs)
    expected = formula(spec, weights, inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        error = (found[name] - value).abs().max().item()
        assert error <= TOLERANCES[precision] * max(1.0, value.abs().max().item()), name


@pytest.mark.parametrize(("tokens", "kept", "past", "rows"), MIXES)
def test_both_dialects_of_a_segment_compute_the_same(
    spec: ModelSpec,
    segment: Callable[[str, str], Runner],
    tokens: int,
    kept: int,
    past: int,
    rows: int,
) -> None:
    inputs = random_inputs(spec, tokens, kept, past, rows)
    portable, native = segment("portable", "fp32")(inputs), segment("native", "fp32")(inputs)
    for name, value in portable.items():
        torch.testing.assert_close(native[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("dialect", ["portable", "native"])
@pytest.mark.parametrize("filled", [0, 1, 29, 30])
@pytest.mark.parametrize(("tokens", "kept", "rows"), [(1, 1, 1), (9, 5, 2)])
def test_positions_behind_the_past_length_are_not_seen(
    spec: ModelSpec,
    segment: Callable[[str, str], Runner],
    dialect: str,
    precision: str,
    filled: int,
    tokens: int,
    kept: int,
    rows: int,
) -> None:
    padded = random_inputs(spec, tokens, kept, 30, rows)
    padded["past_length"] = torch.tensor([filled])
    exact = dict(padded)
    for name, value in padded.items():
        if name.startswith("past_key_values."):
            exact[name] = value[:, :filled]
            value[:, filled:] *= 30  # would outweigh all else
    found, expected = (segment(dialect, precision)(it) for it in (padded, exact))
    for name, value in expected.items():
        error = (found[name] - value).abs().max().item()
        assert error <= TOLERANCES[precision] * max(1.0, value.abs().max().item()), name


@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_a_prompt_in_chunks_gives_what_it_gives_at_once(
    spec: ModelSpec, segment: Callable[[str, str], Runner], dialect: str
) -> None:
    run = segment(dialect, "fp32")
    whole = random_inputs(spec, 10, 10, 0, 1)
    whole["position_ids"] = torch.arange(10).unsqueeze(0)
    at_once = run(whole)
    parts = []
    for start, stop in ((0, 6), (6, 9), (9, 10)):
        part = random_inputs(spec, stop - start, stop - start, 0, 1)
        part["hidden_states"] = whole["hidden_states"][:, start:stop]
        part["position_ids"] = whole["position_ids"][:, start:stop]
        for layer in range(FIRST, LAST):
            for kind in ("key", "value"):
                past = [whole[f"past_key_values.{layer}.{kind}"]]
                past += [earlier[f"present.{layer}.{kind}"] for earlier in parts]
                part[f"past_key_values.{layer}.{kind}"] = torch.cat(past, 1)
        part["past_length"] = torch.tensor([start])
        parts.append(run(part))
    in_chunks = torch.cat([part["hidden_states_out"] for part in parts], 1)
    torch.testing.assert_close(in_chunks, at_once["hidden_states_out"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_scores_are_zero_when_there_are_neither_visual_nor_text_tokens(
    spec: ModelSpec, segment: Callable[[str, str], Runner], dialect: str
) -> None:
    inputs = random_inputs(spec, 6, 6, 3, 1)
    inputs["visual_weights"] = torch.zeros(6)
    inputs["text_weights"] = torch.zeros(1)
    found = segment(dialect, "fp32")(inputs)
    assert not found["scores.self"].any()
    assert not found["scores.cross"].any()


@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_large_activations_do_not_overflow_in_fp16(
    spec: ModelSpec, segment: Callable[[str, str], Runner], dialect: str
) -> None:
    # Squares of such values are beyond FP16: norms and softmax are FP32 islands.
    inputs = random_inputs(spec, 5, 5, 0, 2)
    inputs["hidden_states"] *= 2000
    found = segment(dialect, "fp16")(inputs)
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("tokens", [1, 2, 9])
@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_the_head_gives_the_logits_of_the_last_position(
    spec: ModelSpec, composer: Composers, dialect: str, tokens: int
) -> None:
    graph = composer(dialect, "fp32").head(HeadPlan("head", 0, spec.text.vocabulary))
    weights = random_weights(graph, seed=2)
    hidden = torch.randn(1, tokens, spec.text.hidden, generator=torch.Generator().manual_seed(3))
    logits = Runner(graph, weights)({"hidden_states": hidden})["logits"]
    normed = rms_norm(hidden[:, -1].double(), weights["norm.weight"], spec.text.rms_norm_eps)
    expected = normed @ weights["lm_head.weight"].double().T
    assert logits.shape == (1, spec.text.vocabulary)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_a_part_of_the_head_gives_its_rows_of_the_vocabulary(
    spec: ModelSpec, composer: Composers, dialect: str
) -> None:
    graph = composer(dialect, "fp32").head(HeadPlan("head_1", 192, 320))
    rows = next(weight for weight in graph.weights if weight.name == "lm_head.weight")
    assert (graph.name, rows.shape, rows.first_row) == ("head_1", (128, spec.text.hidden), 192)
    assert rows.skipped_bytes == 192 * spec.text.hidden * 4
    weights = random_weights(graph, seed=2)
    hidden = torch.randn(1, 3, spec.text.hidden, generator=torch.Generator().manual_seed(3))
    logits = Runner(graph, weights)({"hidden_states": hidden})["logits"]
    normed = rms_norm(hidden[:, -1].double(), weights["norm.weight"], spec.text.rms_norm_eps)
    expected = normed @ weights["lm_head.weight"].double().T
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-5)
