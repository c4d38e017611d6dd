import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig, LlamaModel

from atp_runtime.chunk import Chunk
from atp_runtime.context import Prefill
from atp_runtime.decoder_results import DecoderState, PointResult, PrefillResult, StageCall
from atp_runtime.image_tokens import Places
from atp_runtime.manifest import (
    Embedding,
    Manifest,
    Provenance,
    Stage,
    TextModel,
    VisionModel,
    read_manifest,
)
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import Selection
from atp_runtime.statistics import (
    TurnTimes,
    decode_bytes,
    mean_visual_tokens,
    peak_memory_bytes,
    segment_flops,
    turn_statistics,
    visual_tokens_entering,
)

SOMEWHERE = Provenance("", "", "", {})


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return read_manifest(tiny_bundle)


def stage_of(layers: tuple[int, int], *, prunes: bool = False) -> Stage:
    point = PruningPoint(layers[1], "keep_all", {}) if prunes else None
    return Stage(f"segment_{layers[0]}", "segment", "", (), (), (), layers, point)


def cut_into(*stages: Stage) -> Manifest:
    text = TextModel(stages[-1].layers[1], 64, 4, 2, 16, 128, 512, 2048)
    vision = VisionModel((32, 32), (4, 4), 16, 0, 0, 504)
    embedding = Embedding("e.npy", "float32")
    fixed = {"format": "atp-bundle", "schema_version": 1, "precision": "fp32", "opset": 18}
    return Manifest(
        **fixed,
        dialect="portable",
        text=text,
        vision=vision,
        embedding=embedding,
        axes={},
        stages=stages,
        processor="processor",
        pruning_weights=None,
        provenance=SOMEWHERE,
        files={},
    )


def point_result(before_layer: int, kept: int, entered: int) -> PointResult:
    alive = np.arange(entered)
    return PointResult(before_layer, alive, alive[:kept], Selection(alive < kept))


@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (7, 0), (5, 9), (1, 20)])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_flops_are_those_of_the_products_that_pytorch_runs(
    tokens: int, past: int, kv_heads: int
) -> None:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=24,
        vocab_size=32,
        attn_implementation="eager",
    )
    model, cache = LlamaModel(config).eval(), DynamicCache(config=config)
    with torch.no_grad():
        if past:
            model(inputs_embeds=torch.zeros(1, past, 64), past_key_values=cache)
        with FlopCounterMode(display=False) as counter:
            model(inputs_embeds=torch.zeros(1, tokens, 64), past_key_values=cache)
    text = TextModel(3, 64, 4, kv_heads, 24, 96, 32, 2048)
    found = segment_flops(text, stage_of((0, 3)), tokens, past)
    assert found == counter.get_total_flops()


@given(
    depths=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    visual=st.integers(1, 40),
    data=st.data(),
)
def test_mean_visual_tokens_is_the_average_of_what_each_layer_sees(
    depths: list[int], visual: int, data: st.DataObject
) -> None:
    stages, points, seen, alive, layer = [], [], [], visual, 0
    for number, depth in enumerate(depths):
        last = number == len(depths) - 1
        prunes = not last and data.draw(st.booleans())
        stages.append(stage_of((layer, layer + depth), prunes=prunes))
        layer += depth
        seen += [alive] * depth
        if prunes:
            kept = data.draw(st.integers(0, alive))
            points.append(point_result(layer, kept, alive))
            alive = kept
    manifest = cut_into(*stages)
    entering = visual_tokens_entering(manifest, visual, points)
    assert mean_visual_tokens(manifest, entering) == pytest.approx(sum(seen) / len(seen))


def test_visual_tokens_stay_when_a_segment_ends_without_a_pruning_point() -> None:
    manifest = cut_into(stage_of((0, 1)), stage_of((1, 3), prunes=True), stage_of((3, 4)))
    assert visual_tokens_entering(manifest, 16, [point_result(3, 5, 16)]) == [16, 16, 5]


def test_each_decode_step_reads_the_decoders_weights_once(manifest: Manifest, tiny) -> None:
    with safe_open(tiny.checkpoint / "model.safetensors", "pt") as file:
        decoder = [name for name in file.keys() if "language_model" in name]  # noqa: SIM118
        read = [name for name in decoder if "embed_tokens" not in name]
        weights = sum(4 * file.get_tensor(name).numel() for name in read)
    page = 4096  # each weight of a data file begins on a page
    found = decode_bytes(manifest, (0, 0, 0, 0), 1)
    assert weights <= found < weights + page * len(read)
    assert decode_bytes(manifest, (0, 0, 0, 0), 0) == 0


def test_decode_steps_read_one_more_position_each_of_every_cache(manifest: Manifest) -> None:
    position = 2 * manifest.text.kv_heads * manifest.text.head_dim * 4
    lengths, steps = (30, 20, 10, 7), 5
    weights = steps * decode_bytes(manifest, (0, 0, 0, 0), 1)
    caches = sum(position * (length + step) for length in lengths for step in range(steps))
    assert decode_bytes(manifest, lengths, steps) == weights + caches


def a_prefill(manifest: Manifest, points: tuple[PointResult, ...], visual: int) -> Prefill:
    places = Places.whole(manifest.vision)
    chunk = Chunk.from_ids([1, 2, *[504] * visual, 3, 4], 504, [places] * (visual > 0))
    calls = [StageCall(stage.name, 20, 0, 0.25) for stage in manifest.segments]
    calls.append(StageCall("head", 1, 0, 100.0))
    logits = np.zeros(manifest.text.vocabulary, dtype=np.float32)
    result = PrefillResult(logits, points, tuple(calls))
    return Prefill(7, chunk, result, DecoderState(27, (20, 9, 8, 7)), 0.0)


def test_turn_is_told_in_the_words_of_the_question_it_answers(manifest: Manifest) -> None:
    points = (point_result(1, 8, 16), point_result(2, 4, 8), point_result(3, 0, 4))
    times = TurnTimes(began=10.0, prepared=10.5, seen=12.0, prefilled=13.0, sampled=(13.5, 15.5))
    told = turn_statistics(manifest, a_prefill(manifest, points, 16), times)
    assert (told.prompt_tokens, told.reused_tokens, told.visual_tokens) == (20, 7, 16)
    assert [(p.before_layer, p.entered, p.kept) for p in told.points] == [
        (1, 16, 8),
        (2, 8, 4),
        (3, 4, 0),
    ]
    assert told.mean_visual_tokens == (16 + 8 + 4 + 0) / 4
    assert (told.preprocess_seconds, told.vision_seconds) == (0.5, 1.5)
    assert (told.prefill_seconds, told.first_token_seconds) == (1.0, 3.5)
    assert (told.answer_tokens, told.tokens_per_second) == (2, 0.5)
    assert told.decode_gbps == decode_bytes(manifest, (20, 9, 8, 7), 1) / 2.0 / 1e9
    flops = sum(segment_flops(manifest.text, stage, 20, 0) for stage in manifest.segments)
    assert told.prefill_gflops == pytest.approx(flops / 1.0 / 1e9)


def test_pruning_is_not_mentioned_when_the_turn_has_no_image(manifest: Manifest) -> None:
    points = tuple(point_result(layer, 0, 0) for layer in (1, 2, 3))
    times = TurnTimes(0.0, 0.0, 0.0, 0.0, sampled=(1.0,))
    told = turn_statistics(manifest, a_prefill(manifest, points, 0), times)
    assert (told.points, told.mean_visual_tokens) == ((), None)
    assert (told.tokens_per_second, told.decode_gbps) == (None, None)


PEAK_OF_CHILD = """
import subprocess, sys
import numpy as np
own = np.ones(400_000_000 // 8)
code = "from atp_runtime.statistics import peak_memory_bytes; print(peak_memory_bytes())"
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
"""


def test_peak_memory_counts_what_was_freed_again() -> None:
    block = np.ones(200_000_000 // 8)
    assert block.nbytes == 200_000_000
    del block
    assert peak_memory_bytes() > 200_000_000


def test_peak_memory_is_not_that_of_the_program_that_started_this_one() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PEAK_OF_CHILD], capture_output=True, text=True, check=True
    )
    assert 0 < int(run.stdout) < 300_000_000
