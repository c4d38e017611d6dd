"""Policies against independent readings of their papers, on made-up attention."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_export.cli import main as atp_export
from atp_export.job import ExportJob
from atp_export.policies import POLICIES, Policy, make_policy, read_settings
from atp_runtime.errors import InputError
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.raters import raters
from atp_runtime.selection import PointSelector, VisualTokens

MakeJob = Callable[..., ExportJob]
DEPTH = 32


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def patterns(count: int = 200) -> Iterator[tuple[np.ndarray, int, int]]:
    """Causal attention float64 [heads, tokens, tokens], and where its visual tokens begin and end.

    Among them: ties, a single visual token, nearly all visual.
    """
    random = np.random.default_rng(0)
    for number in range(count):
        tokens = int(random.integers(4, 40))
        begin = int(random.integers(0, tokens - 2))
        end = int(random.integers(begin + 1, tokens))
        scores = random.normal(size=(3, tokens, tokens))
        if number % 4 == 0:
            scores = np.round(scores)  # ties
        causal = np.where(np.tri(tokens, dtype=bool), scores, -np.inf)
        yield softmax(causal), begin, end


def selected(
    point: PruningPoint,
    attention: np.ndarray,
    begin: int,
    end: int,
    judges: np.ndarray | None = None,
) -> list[int]:
    """What the runtime keeps, given what a scorer would report."""
    tokens = attention.shape[1]
    rows = attention[:, end:] if point.queries == "text" else attention[:, -1:]
    if judges is not None:
        rows = attention[:, judges]
    cross = rows.mean(axis=(0, 1)).astype(np.float32)
    index = np.arange(begin, end)
    visual = VisualTokens(index, np.zeros_like(index), np.zeros_like(index), index - begin)
    own = np.random.default_rng(1).normal(size=tokens).astype(np.float32)
    selection = PointSelector(point, {})(own, cross, True, visual)
    return index[selection.kept].tolist()


def best(scores: np.ndarray, begin: int, end: int, count: int) -> list[int]:
    """The visual tokens with the highest scores, of equal ones the earlier."""
    order = sorted(range(begin, end), key=lambda at: (-np.float32(scores[at]), at))
    return sorted(order[:count])


def rounded(share: float, tokens: int) -> int:
    return int(np.floor(share * tokens + 0.5))


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.0, 1.0])
def test_fastv_keeps_what_the_last_row_attends_to_most(ratio: float) -> None:
    policy = make_policy("fastv", {"ratio": ratio}, "here")
    (point,) = policy.points(DEPTH)
    assert point.before_layer == 2
    for attention, begin, end in patterns():
        last_row = attention.mean(axis=0)[-1]
        expected = best(last_row, begin, end, rounded(1 - ratio, end - begin))
        assert selected(point, attention, begin, end) == expected


def test_pyramiddrop_leaves_an_eighth_behind_its_third_point() -> None:
    points = make_policy("pyramiddrop", {}, "here").points(DEPTH)
    assert [point.before_layer for point in points] == [8, 16, 24]
    left = 576
    for point in points:
        left = rounded(point.parameters["ratio"], left)
    assert left == 576 // 8
    for attention, begin, end in patterns(50):
        expected = best(attention.mean(axis=0)[-1], begin, end, rounded(0.5, end - begin))
        assert selected(points[0], attention, begin, end) == expected


def test_vtw_keeps_nothing_from_the_papers_layer_on() -> None:
    (point,) = make_policy("vtw", {}, "here").points(DEPTH)
    assert point.before_layer == 15
    for attention, begin, end in patterns(20):
        assert selected(point, attention, begin, end) == []


def test_topk_averages_the_text_s_rows_unless_it_asks_the_last() -> None:
    settings = {"keep": [3], "layers": [4], "score": "cross"}
    (text,) = make_policy("topk", settings, "here").points(DEPTH)
    (last,) = make_policy("topk", {**settings, "queries": "last"}, "here").points(DEPTH)
    for attention, begin, end in patterns():
        heads = attention.mean(axis=0)
        count = min(3, end - begin)
        found = selected(text, attention, begin, end)
        assert found == best(heads[end:].mean(axis=0), begin, end, count)
        assert selected(last, attention, begin, end) == best(heads[-1], begin, end, count)


def test_sparsevlm_asks_the_words_that_resemble_the_image() -> None:
    points = make_policy("sparsevlm", {}, "here").points(DEPTH)
    assert [(point.before_layer, point.parameters["keep"]) for point in points] == [
        (3, 300),
        (7, 200),
        (16, 110),
    ]
    random = np.random.default_rng(5)
    for number, (attention, begin, end) in enumerate(patterns()):
        tokens = attention.shape[1]
        hidden = random.normal(size=(tokens, 8)) * (number % 3)  # 0: all words are alike
        # Read from the paper, one visual token after the other, in float64.
        shares = np.mean([softmax(hidden[at] @ hidden[end:].T) for at in range(begin, end)], axis=0)
        wanted = np.flatnonzero(shares > shares.mean() + 1e-12)
        judges = end + (wanted if len(wanted) else np.arange(tokens - end))
        found = raters(hidden.astype(np.float32), np.arange(begin, end))
        assert found.tolist() == judges.tolist()
        expected = best(attention.mean(axis=0)[judges].mean(axis=0), begin, end, 3)
        settings = {"keep": [3], "layers": [1], "recycle": False}
        (point,) = make_policy("sparsevlm", settings, "here").points(DEPTH)
        assert selected(point, attention, begin, end, judges) == expected


def test_random_and_uniform_look_at_no_attention() -> None:
    for name in ("random", "uniform"):
        (point,) = make_policy(name, {"keep": [3], "layers": [4]}, "here").points(DEPTH)
        for attention, begin, end in patterns(20):
            flat = np.full_like(attention, 1 / attention.shape[1])
            kept = selected(point, attention, begin, end)
            assert kept == selected(point, flat, begin, end)
            assert len(kept) == min(3, end - begin)


UNTRAINED = sorted({*POLICIES} - {"videollm_mod"})
"""Those that have a place in any checkpoint, unless told another."""


@given(st.sampled_from(UNTRAINED), st.integers(4, 80))
def test_points_lie_inside_every_decoder_and_rise(name: str, depth: int) -> None:
    layers = [point.before_layer for point in make_policy(name, {}, "here").points(depth)]
    assert layers == sorted(set(layers))
    assert all(0 < layer < depth for layer in layers)


def test_a_policy_makes_the_plan(make_job: MakeJob) -> None:
    job = make_job(policy="fastv", settings={"layer": 1, "ratio": 0.75})
    point = job.plan.segments[0].pruning
    assert point == PruningPoint(1, "top_k", {"ratio": 0.25, "score": "cross"}, queries="last")
    assert job.modules is None
    assert job.notice is None
    assert job.key() != make_job(policy="fastv", settings={"layer": 1}).key()


def test_a_checkpoint_may_choose_a_policy(make_job: MakeJob, own_checkpoint: Path) -> None:
    file = own_checkpoint / "pruning_config.json"
    file.write_text(json.dumps({"policy": "vtw", "layer": 3}))
    point = make_job(own_checkpoint).plan.segments[0].pruning
    assert point == PruningPoint(3, "keep_none", {})
    assert not make_job(own_checkpoint, dense=True).plan.prunes
    other = make_job(own_checkpoint, policy="fastv").plan.segments[0].pruning
    assert other is not None
    assert other.rule == "top_k"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"policy": "best"}, "unknown policy 'best'"),
        ({"policy": "fastv", "settings": {"ratio": 1.5}}, "ratio is 1.5"),
        ({"policy": "fastv", "settings": {"ratio": "much"}}, "ratio"),
        ({"policy": "fastv", "settings": {"rate": 0.5}}, "unknown field 'rate'"),
        ({"policy": "fastv", "settings": {"layer": 0}}, "layer 0"),
        ({"policy": "vtw", "settings": {"layer": 4}}, "layer 4"),
        ({"policy": "topk", "settings": {"keep": [3, 5], "layers": [1, 2]}}, "rises"),
        ({"policy": "topk", "settings": {"keep": [3], "layers": [1, 2]}}, "1 numbers for 2 layers"),
        ({"policy": "topk", "settings": {"queries": "first"}}, "first"),
        ({"policy": "topk", "settings": {"score": "best"}}, "best"),
        ({"policy": "pyramiddrop", "settings": {"layers": [3, 1]}}, "layer 1 stands after"),
        ({"policy": "fastv", "dense": True}, "--policy fastv with --dense"),
        ({"policy": "fastv", "prune_at": [2]}, "--policy fastv with --prune-at"),
        ({"settings": {"ratio": 0.5}}, "--set without --policy"),
    ],
)
def test_a_policy_that_is_none_is_refused(
    make_job: MakeJob, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        make_job(**options)


@pytest.mark.parametrize(
    "words",
    [
        ("--policy", "fastv", "--set", "layer=1", "--set", "ratio=0.75"),
        ("--policy", "pyramiddrop"),
        ("--policy", "vtw"),
        ("--policy", "random", "--set", "keep=9", "--set", "layers=2"),
        ("--policy", "uniform", "--set", "keep=9", "--set", "layers=1"),
        ("--policy", "topk", "--set", "keep=9,3", "--set", "layers=1,2", "--set", "queries=last"),
    ],
    ids=lambda words: words[1],
)
def test_bundles_compute_what_the_pruned_checkpoint_does(
    tiny: Any, tmp_path: Path, words: tuple[str, ...]
) -> None:
    out = tmp_path / "bundle"
    assert (
        atp_export([str(tiny.checkpoint), str(out), "--precision", "fp32", "--quiet", *words]) == 0
    )
    parity = json.loads((out / "reports" / "parity.json").read_text())
    assert parity["passed"] is True


def test_settings_are_read_from_words() -> None:
    words = ["ratio=0.75", "layers=8,16,24", "score=cross", "layer=2"]
    assert read_settings(words) == {
        "ratio": 0.75,
        "layers": [8, 16, 24],
        "score": "cross",
        "layer": 2,
    }
    for word in ("ratio", "=2"):
        with pytest.raises(InputError, match="NAME=VALUE"):
            read_settings([word])


def test_every_policy_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
    for name, kind in POLICIES.items():
        assert issubclass(kind, Policy)
        assert f"| `{name}` |" in text
