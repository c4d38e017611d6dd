"""Layers that tokens skip and come back behind: what is run, cached, counted and told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atp_runtime.cli.run_report import statistics_lines
from atp_runtime.deadline import DeadlineSelectors
from atp_runtime.errors import InputError
from atp_runtime.evaluation.pruning_choice import PruningChoice
from atp_runtime.generation import GenerationOptions
from atp_runtime.latency.model import Latency
from atp_runtime.manifest import Manifest, dump_manifest, read_manifest
from atp_runtime.pruning_view import point_views
from atp_runtime.selection import Selectors, VisualTokens
from atp_runtime.session import Session
from atp_runtime.statistics import segment_flops

VISUAL, THROUGH = 16, 4  # of an image; a quarter of them goes through layers 1 and 3
SHORT = GenerationOptions(max_new_tokens=3)


@pytest.fixture(scope="module")
def session(routed: Path) -> Iterator[Session]:
    with Session.open(routed, threads=1) as session:
        yield session


@pytest.fixture(scope="module")
def manifest(routed: Path) -> Manifest:
    return read_manifest(routed)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_only_what_goes_through_is_computed_and_cached(session: Session, photo: Path) -> None:
    answer = session.ask("What is this?", [photo], SHORT)
    tokens, decoder = answer.statistics.prompt_tokens, session.model.decoder
    skipping, steps = VISUAL - THROUGH, answer.statistics.answer_tokens - 1
    expected = [tokens, tokens - skipping, tokens, tokens - skipping]
    assert decoder.state.lengths == tuple(length + steps for length in expected)
    assert decoder.state.position == tokens + steps


def test_segments_run_on_what_enters_them_and_all_of_them_on_a_decoded_token(
    session: Session, photo: Path
) -> None:
    calls: list[list[tuple[str, int]]] = []
    decoder = session.model.decoder
    prefill, decode = decoder.prefill, decoder.decode

    def seen(run: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            found = run(*arguments)
            calls.append([(call.stage, call.tokens) for call in decoder.calls])
            return found

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "prefill", seen(prefill))
        patch.setattr(decoder, "decode", seen(decode))
        tokens = session.ask("What is this?", [photo], SHORT).statistics.prompt_tokens

    less = tokens - VISUAL + THROUGH
    assert [count for _, count in calls[0]] == [tokens, less, tokens, less, 1]
    assert {count for call in calls[1:] for _, count in call} == {1}


def test_tokens_are_counted_layer_by_layer(
    session: Session, manifest: Manifest, photo: Path
) -> None:
    answer = session.ask("What is this?", [photo], SHORT)
    told = answer.statistics
    assert [(it.before_layer, it.entered, it.kept, it.returns) for it in told.points] == [
        (1, VISUAL, THROUGH, True),
        (3, VISUAL, THROUGH, True),
    ]
    assert told.mean_visual_tokens == (VISUAL + THROUGH + VISUAL + THROUGH) / 4
    text = told.prompt_tokens - VISUAL
    counts = (VISUAL, THROUGH, VISUAL, THROUGH)
    flops = sum(
        segment_flops(manifest.text, stage, text + count, 0)
        for stage, count in zip(manifest.segments, counts, strict=True)
    )
    # Achieved by the segments alone, whose times are less than the prefill's.
    assert told.prefill_gflops * told.prefill_seconds * 1e9 > flops
    assert "through layer 1   4 of 16 visual tokens routed, 25 %" in statistics_lines(told)


def test_what_went_through_is_drawn(session: Session, manifest: Manifest, photo: Path) -> None:
    answer = session.ask("What is this?", [photo], SHORT)
    views = point_views(answer, 0, manifest.vision)
    assert [(it.layer, int(it.kept.sum())) for it in views] == [(1, THROUGH), (3, THROUGH)]


def test_later_turns_see_in_a_routed_layer_only_what_went_through(
    session: Session, photo: Path
) -> None:
    chat = session.conversation()
    chat.ask("What is this?", [photo], SHORT)
    before = session.model.decoder.state.lengths
    chat.ask("And what else?", (), SHORT)
    after = session.model.decoder.state.lengths
    assert len({new - old for old, new in zip(before, after, strict=True)}) == 1
    assert after[0] - after[1] == VISUAL - THROUGH


class LinearLatency(Latency):
    """A millisecond per token and stage."""

    spread = 1.0

    def stage(self, name: str, tokens: int, visual: int = 0) -> float:
        return 0.001 * tokens

    def between(self, tokens: int) -> float:
        return 0.0


def test_a_deadline_lets_fewer_through_and_counts_those_that_come_back(manifest: Manifest) -> None:
    points = [stage.pruning for stage in manifest.segments if stage.pruning]
    wide = [replace(it, parameters={"keep": 12, "score": "self"}) for it in points]
    own = Selectors(wide, {})
    scores = -np.arange(5 + VISUAL, dtype=np.float32)
    place = np.arange(VISUAL)
    visual = VisualTokens(place, np.zeros_like(place), place, place)

    def kept(deadline: float) -> int:
        select = DeadlineSelectors(own, manifest, LinearLatency(), deadline, lambda: 0.0)
        return int(select(points[0], scores, scores, True, visual).kept.sum())

    # Of 16 visual tokens k go through layer 1, all through layer 2, 12 through layer 3; with text
    # and the head that is 5 + k, 5 + 16, 5 + 12 and 1 ms.
    assert kept(0.001 * (5 + 12 + 21 + 17 + 1) + 1e-9) == 12
    assert kept(0.001 * (5 + 7 + 21 + 17 + 1) + 1e-9) == 7
    assert kept(0.001) == 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda stages: stages[1]["pruning"].update(returns=False), "segment_1 lets"),
        (lambda stages: stages[3]["pruning"].update(returns=False), "segment_3 lets"),
        (lambda stages: stages[2]["inputs"].pop(), "segment_1 does not let"),
    ],
)
def test_points_and_segments_that_contradict_each_other_are_refused(
    manifest: Manifest, tmp_path: Path, change: Callable[[Any], Any], complaint: str
) -> None:
    value = json.loads(dump_manifest(manifest))
    assert value["stages"][2]["inputs"][-1]["name"] == "route_weights"
    change(value["stages"])
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=f"{complaint} tokens skip it"):
        read_manifest(tmp_path)


def test_other_rules_are_compared_where_they_do_not_need_attention(session: Session) -> None:
    for rule in ("random", "uniform"):  # later layers may let more through
        PruningChoice(rule, (4, 9)).apply(session.model, 0)
    with pytest.raises(InputError, match="last_row") as caught:
        PruningChoice("last_row", (4, 4)).apply(session.model, 0)
    assert "ranked by its router" in caught.value.why
