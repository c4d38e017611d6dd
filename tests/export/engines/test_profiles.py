from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atp_export.engines.options import EngineOptions
from atp_export.engines.profiles import profile_shapes, stage_profiles
from atp_runtime.engine_set import DECODE, PREFILL, EngineProfile
from atp_runtime.errors import InputError
from atp_runtime.manifest import Manifest, read_manifest

Make = Callable[..., Manifest]
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@st.composite
def plans(draw: st.DrawFn) -> tuple[dict[str, int], EngineOptions]:
    """Dimensions of a bundle, and options that fit it."""
    longest, visual = draw(st.integers(1, 5000)), draw(st.integers(1, 700))
    points = draw(st.integers(0, 4))
    counts = sorted(draw(st.lists(st.integers(0, visual), min_size=points, max_size=points)))
    options = EngineOptions(
        max_tokens=draw(st.none() | st.integers(1, longest)),
        kept=draw(st.none() | st.just(tuple(counts[::-1]))),
    )
    text = draw(st.integers(1, 100))
    return {"longest": longest, "visual": visual, "points": points, "text": text}, options


@given(plan=plans())
@SHARED
def test_what_an_engine_is_tuned_for_is_what_it_takes(
    make_manifest: Make, plan: tuple[dict[str, int], EngineOptions]
) -> None:
    dimensions, options = plan
    manifest = make_manifest(**dimensions)
    for stage in manifest.stages:
        for profile in stage_profiles(manifest, stage, options):
            for axis in profile.axes.values():
                assert axis.minimum <= axis.typical <= axis.maximum


@given(plan=plans(), data=st.data())
@SHARED
def test_prefill_takes_every_length_up_to_the_ceiling(
    make_manifest: Make, plan: tuple[dict[str, int], EngineOptions], data: st.DataObject
) -> None:
    dimensions, options = plan
    manifest = make_manifest(**dimensions)
    ceiling = options.max_tokens or dimensions["longest"]
    tokens = data.draw(st.integers(1, ceiling))
    kept = data.draw(st.integers(1, tokens))
    past = data.draw(st.integers(0, ceiling))
    rows = data.draw(st.integers(1, kept))
    for stage in manifest.segments:
        prefill = stage_profiles(manifest, stage, options)[0]
        lengths = {"tokens": tokens, "kept": kept, "past": past, "rows": rows}
        assert prefill.name == PREFILL
        assert prefill.admits({name: lengths[name] for name in prefill.axes})


@given(plan=plans(), data=st.data())
@SHARED
def test_decode_takes_one_token_behind_any_past(
    make_manifest: Make, plan: tuple[dict[str, int], EngineOptions], data: st.DataObject
) -> None:
    dimensions, options = plan
    manifest = make_manifest(**dimensions)
    past = data.draw(st.integers(0, options.max_tokens or dimensions["longest"]))
    lengths = {"tokens": 1, "kept": 1, "past": past, "rows": 1}
    for stage in manifest.segments:
        decode = stage_profiles(manifest, stage, options)[1]
        assert decode.name == DECODE
        assert decode.admits({name: lengths[name] for name in decode.axes})
        assert not decode.admits({"tokens": 2})


@given(plan=plans())
@SHARED
def test_nothing_beyond_the_ceiling_is_taken(
    make_manifest: Make, plan: tuple[dict[str, int], EngineOptions]
) -> None:
    dimensions, options = plan
    manifest = make_manifest(**dimensions)
    ceiling = options.max_tokens or dimensions["longest"]
    for stage in (*manifest.segments, manifest.stage("head")):
        for profile in stage_profiles(manifest, stage, options):
            assert max(axis.maximum for axis in profile.axes.values()) <= ceiling


def llava(make_manifest: Make, points: int = 3) -> Manifest:
    """LLaVA-1.5: 576 visual tokens, tuned for 64 tokens of text beside them."""
    return make_manifest(points=points, longest=4096, visual=576, text=64)


def tuned_for(manifest: Manifest, options: EngineOptions) -> list[tuple[int, int, int]]:
    """Entering and kept tokens in prefill, and cached tokens in decode, of each segment."""
    found = []
    for stage in manifest.segments:
        prefill, decode = stage_profiles(manifest, stage, options)
        lengths = prefill.axes["tokens"], prefill.axes["kept"], decode.axes["past"]
        found.append(tuple(axis.typical for axis in lengths))
    return found  # type: ignore[return-value]


def test_segments_are_tuned_for_the_text_and_what_is_expected_to_be_kept(
    make_manifest: Make,
) -> None:
    manifest = llava(make_manifest)
    options = EngineOptions(kept=(300, 150, 60))
    assert tuned_for(manifest, options) == [
        (640, 640, 640),
        (640, 364, 364),
        (364, 214, 214),
        (214, 124, 124),
    ]


def test_what_skips_a_routed_layer_enters_and_leaves_it(routed: Path) -> None:
    manifest = read_manifest(routed)
    typical, text = manifest.axes["tokens"].typical, 64
    assert tuned_for(manifest, EngineOptions(kept=(4, 9))) == [
        (typical, typical, typical),
        (typical, text + 4, text + 4),
        (typical, typical, typical),
        (typical, text + 9, text + 9),
    ]


def test_without_an_expectation_every_segment_is_tuned_for_the_whole_prompt(
    make_manifest: Make,
) -> None:
    assert tuned_for(llava(make_manifest), EngineOptions()) == [(640, 640, 640)] * 4


def test_a_low_ceiling_lowers_what_engines_are_tuned_for(make_manifest: Make) -> None:
    options = EngineOptions(max_tokens=200, kept=(300, 150, 60))
    assert tuned_for(llava(make_manifest), options) == [
        (200, 200, 200),
        (200, 200, 200),
        (200, 200, 200),
        (200, 124, 124),
    ]


def test_a_cut_without_pruning_keeps_what_came_in(make_manifest: Make) -> None:
    manifest = llava(make_manifest, points=2)
    cut = replace(manifest.stage("segment_0"), pruning=None)
    stages = tuple(cut if stage.name == cut.name else stage for stage in manifest.stages)
    found = tuned_for(replace(manifest, stages=stages), EngineOptions(kept=(100,)))
    assert found == [(640, 640, 640), (640, 640, 640), (640, 164, 164)]


def test_the_head_is_tuned_for_the_last_position_alone(make_manifest: Make) -> None:
    manifest = llava(make_manifest)
    (profile,) = stage_profiles(manifest, manifest.stage("head"), EngineOptions())
    axis = profile.axes["tokens"]
    assert (axis.minimum, axis.typical, axis.maximum) == (1, 1, 4096)


def test_the_ceiling_bounds_the_images_that_fit_under_it(make_manifest: Make) -> None:
    manifest = llava(make_manifest)
    for tokens, images in ((4096, 7), (1200, 2), (100, 1)):
        options = EngineOptions(max_tokens=tokens)
        (profile,) = stage_profiles(manifest, manifest.stage("vision"), options)
        assert profile.axes["images"].maximum == images


def test_segments_without_a_scorer_have_no_rows(make_manifest: Make) -> None:
    manifest = make_manifest(points=1)
    first, last = (stage_profiles(manifest, s, EngineOptions())[0] for s in manifest.segments)
    assert "rows" in first.axes
    assert "rows" not in last.axes


def test_shapes_put_lengths_where_the_axes_are(make_manifest: Make) -> None:
    manifest = llava(make_manifest)
    stage = manifest.stage("segment_1")
    prefill, decode = stage_profiles(manifest, stage, EngineOptions(max_tokens=1000))
    growing = {tensor.name for tensor in stage.inputs} - {"past_length"}
    assert set(profile_shapes(stage, prefill)) == growing
    past = profile_shapes(stage, decode)["past_key_values.1.key"]
    assert (past.minimum, past.opt, past.maximum) == ((1, 0, 2, 4), (1, 640, 2, 4), (1, 1000, 2, 4))
    hidden = profile_shapes(stage, prefill)["hidden_states"]
    assert (hidden.minimum, hidden.opt, hidden.maximum) == ((1, 1, 8), (1, 640, 8), (1, 1000, 8))


def test_inputs_of_fixed_shape_are_in_no_profile(make_manifest: Make) -> None:
    stage = make_manifest().stage("head")
    fixed = replace(stage, inputs=(replace(stage.inputs[0], shape=(1, 1, 8)),))
    assert profile_shapes(fixed, EngineProfile(PREFILL, {})) == {}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (EngineOptions(max_tokens=5000), "--max-tokens 5000"),
        (EngineOptions(kept=(300, 150)), "3 pruning points"),
        (EngineOptions(kept=(150, 300, 60)), "do not come back"),
        (EngineOptions(kept=(577, 300, 60)), "576 visual tokens"),
    ],
)
def test_options_that_do_not_fit_the_bundle_are_refused(
    make_manifest: Make, options: EngineOptions, told: str
) -> None:
    manifest = llava(make_manifest)
    with pytest.raises(InputError, match=told):
        stage_profiles(manifest, manifest.stage("segment_0"), options)
