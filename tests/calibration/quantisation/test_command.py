"""Bundles that were quantised, end to end on tiny ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from tests.calibration.one_dialect import one_dialect

from atp_calibration.derived_bundle import deriving
from atp_calibration.progress import Progress
from atp_calibration.quantisation.agreement import AgreementBackend
from atp_calibration.quantisation.command import RECIPE, quantise_bundle
from atp_calibration.quantisation.observe import observe
from atp_calibration.quantisation.options import QuantisationOptions
from atp_calibration.quantisation.ranges import RangeBackend
from atp_calibration.quantisation.recipe import Recipe, read_recipe, write_recipe
from atp_calibration.quantisation.report import QuantisationReport
from atp_calibration.quantisation.search import SearchOptions
from atp_calibration.quantisation.stage_choices import StageLayers
from atp_calibration.quantisation.stage_files import write_stage
from atp_calibration.samples import Samples, read_samples
from atp_runtime.backends import open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.errors import InputError
from atp_runtime.generation import GenerationOptions
from atp_runtime.session import Session

INT8 = QuantisationOptions("int8", ("decoder", "vision"))
INT4 = QuantisationOptions("int4", ("decoder",), block_size=32)
DIALECTS = ("portable", "native")


@pytest.fixture(scope="module")
def samples(scenes: Path) -> Samples:
    return read_samples(scenes, 4)


def quantise(
    source: Path, out: Path, samples: Samples, options: QuantisationOptions
) -> QuantisationReport:
    with deriving(Bundle.open(source), out, "", options.request()) as new:
        return quantise_bundle(new, samples, options, threads=1)


@pytest.fixture(scope="module", params=["int8", "int4"])
def made(
    request: pytest.FixtureRequest,
    two_dialects: Path,
    samples: Samples,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, QuantisationReport]:
    """A quantised bundle and its report."""
    out = tmp_path_factory.mktemp(request.param) / "out"
    options = INT8 if request.param == "int8" else INT4
    return out, quantise(two_dialects, out, samples, options)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_stage_agrees_with_its_original(
    made: tuple[Path, QuantisationReport], two_dialects: Path, photos: list[Path], dialect: str
) -> None:
    path, report = made
    backend = AgreementBackend(one_dialect(path, dialect), threads=1)
    with Session(one_dialect(two_dialects, dialect), backend) as session:
        session.ask("Is it red?", photos[:1], GenerationOptions(max_new_tokens=3))
    assert backend.found.keys() == {row.name for row in report.stages}
    for agreement in backend.found.values():
        # A few dozen random channels average out less than the hundreds of a real model.
        assert agreement.cosine > (0.995 if report.precision == "int8" else 0.98)
        assert agreement.norm_ratio == pytest.approx(1, abs=0.05)


def test_dialects_share_the_weights(made: tuple[Path, QuantisationReport]) -> None:
    path, report = made
    manifest = Bundle.open(path).manifest
    for row in report.stages:
        stage = manifest.stage(row.name)
        tensors = [
            {
                t.name: tuple((e.key, e.value) for e in t.external_data)
                for t in external(path / file)
            }
            for file in (stage.graph, *stage.other_graphs.values())
        ]
        first, second = tensors
        quantised = [name for name in first if name.endswith((".int8", ".int4"))]
        assert quantised
        assert all(first[name] == second[name] for name in first.keys() & second.keys())
        assert not set(quantised) - second.keys()


def external(path: Path) -> list[onnx.TensorProto]:
    graph = onnx.load(path, load_external_data=False).graph
    return [tensor for tensor in graph.initializer if tensor.external_data]


def test_weights_take_less_space(made: tuple[Path, QuantisationReport]) -> None:
    for row in made[1].stages:
        if row.name != "vision":  # whose convolution and positions stay as they are
            # Most of these small tensors are a page, whatever their precision.
            assert row.bytes_after < row.bytes_before / 2


def test_the_manifest_says_what_was_done(made: tuple[Path, QuantisationReport]) -> None:
    path, report = made
    manifest = Bundle.open(path, verify="full").manifest
    assert manifest.precision == "fp32"
    assert manifest.quantisation
    assert manifest.quantisation.weights == report.precision
    assert manifest.quantisation.layers == len(report.layers)
    assert manifest.opset == (19 if report.precision == "int8" else 21)
    assert manifest.derivations


def test_the_report_ranks_layers_and_compares_streams(
    made: tuple[Path, QuantisationReport],
) -> None:
    path, report = made
    errors = [row.error for row in report.layers]
    assert errors == sorted(errors, reverse=True)
    assert all(0 < error < 0.5 for error in errors)
    assert {row.stage for row in report.streams} == {"segment_1"}
    text = (path / "calibration" / "report.md").read_text()
    assert "Pruned and unpruned streams" in text
    assert report.layers[0].name in text
    assert json.loads((path / "calibration" / "report.json").read_text())["precision"]


def test_a_recipe_replayed_gives_the_same_files(
    made: tuple[Path, QuantisationReport], two_dialects: Path, samples: Samples, tmp_path: Path
) -> None:
    path, report = made
    options = INT8 if report.precision == "int8" else INT4
    quantise(two_dialects, tmp_path / "out", samples, replace(options, recipe=path / RECIPE))
    first, second = (Bundle.open(root).manifest.files for root in (path, tmp_path / "out"))
    assert first == second


def test_the_worst_layers_stay_as_they_are_if_asked(
    made: tuple[Path, QuantisationReport], two_dialects: Path, samples: Samples, tmp_path: Path
) -> None:
    path, report = made
    options = replace(
        INT8 if report.precision == "int8" else INT4,
        recipe=path / RECIPE,
        keep_high_precision=3,
    )
    kept = quantise(two_dialects, tmp_path / "out", samples, options)
    worst = [row.name for row in report.layers[:3]]
    assert [row.name for row in kept.layers if not row.quantised] == worst
    assert list(read_recipe(tmp_path / "out" / RECIPE).high_precision) == worst
    manifest = Bundle.open(tmp_path / "out").manifest
    stored = {
        tensor.name
        for stage in manifest.stages
        for tensor in external(tmp_path / "out" / stage.graph)
    }
    assert stored.issuperset(worst)


def test_migration_alone_changes_nothing(
    two_dialects: Path, samples: Samples, photos: list[Path], tmp_path: Path
) -> None:
    """Scales that move between layers cancel out: in float32, to rounding."""
    source = Bundle.open(two_dialects)
    options = SearchOptions("int8")
    silent, file = Progress(None), tmp_path / "statistics.npz"
    seen = observe(source, samples.samples, RangeBackend(threads=1), file, silent).seen
    with deriving(source, tmp_path / "out", "", {}) as new:
        for stage in source.manifest.segments:
            layers = StageLayers.of(source, stage, frozenset({"decoder"}), options)
            choices = layers.choose(seen[stage.name], options, {}, lambda _: None)
            moved = {
                it.first: replace(it, alpha=0.5)
                for it, group in zip(choices, layers.groups, strict=True)
                if group.fold
            }
            assert moved
            all_choices = {it.first: it for it in choices} | moved
            everything = frozenset(name for it in choices for name in it.layers)
            forms, migration = layers.forms(all_choices, seen[stage.name], everything, 64)
            assert not forms
            write_stage(new, stage, forms, migration, "migrated")
    for dialect in DIALECTS:
        backend = AgreementBackend(one_dialect(tmp_path / "out", dialect), threads=1)
        with Session(one_dialect(two_dialects, dialect), backend) as session:
            session.ask("What is this?", photos[:1], GenerationOptions(max_new_tokens=2))
        assert backend.found.keys() == {"segment_0", "segment_1"}
        assert all(it.cosine > 1 - 1e-9 for it in backend.found.values())


@pytest.mark.parametrize("name", ["two_dialects", "tied_bundle", "two_dialects_fp16"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_head_is_quantised_if_it_is_asked_for(
    request: pytest.FixtureRequest,
    samples: Samples,
    photos: list[Path],
    tmp_path: Path,
    name: str,
    precision: str,
) -> None:
    source, out = request.getfixturevalue(name), tmp_path / "out"
    options = QuantisationOptions(precision, ("head",), block_size=32)
    report = quantise(source, out, samples, options)
    assert [row.name for row in report.layers] == ["lm_head.weight"]
    (stage,) = report.stages
    assert stage.mean_cosine > (0.999 if precision == "int8" else 0.98)

    bundle = Bundle.open(out, verify="full")
    head = bundle.manifest.stage("head")
    assert head.data == ("onnx/head.data",)
    assert (
        bundle.manifest.files[bundle.manifest.embedding.file]
        == (Bundle.open(source).manifest.files[bundle.manifest.embedding.file])
    )
    for dialect in DIALECTS:
        graph = onnx.load(out / bundle.manifest.in_dialect(dialect).stage("head").graph)
        onnx.checker.check_model(graph, full_check=True)
        kinds = [node.op_type for node in graph.graph.node]
        assert "Gemm" not in kinds
        assert kinds.count("MatMul") == 1
        with Session(one_dialect(out, dialect), open_backend(threads=1)) as session:
            answer = session.ask("Is it red?", photos[:1], GenerationOptions(max_new_tokens=3))
        assert answer.ids


def test_a_head_that_stays_goes_on_reading_the_token_table(
    tied_bundle: Path, samples: Samples, tmp_path: Path
) -> None:
    options = QuantisationOptions("int8", ("decoder", "head"), keep_high_precision=29)
    report = quantise(tied_bundle, tmp_path / "out", samples, options)
    assert not any(row.quantised for row in report.layers)
    before, after = (Bundle.open(it).manifest for it in (tied_bundle, tmp_path / "out"))
    assert after.stage("head").data == before.stage("head").data


def test_every_part_of_a_head_is_quantised(
    split_head: Path, samples: Samples, photos: list[Path], tmp_path: Path
) -> None:
    heads = [stage.name for stage in Bundle.open(split_head).manifest.heads]
    assert len(heads) > 1
    options = QuantisationOptions("int8", ("head",))
    report = quantise(split_head, tmp_path / "out", samples, options)
    assert [row.stage for row in sorted(report.layers, key=lambda row: row.stage)] == heads
    assert [row.name for row in report.stages] == heads
    assert all(row.mean_cosine > 0.999 for row in report.stages)
    with Session.open(tmp_path / "out", threads=1) as session:
        assert session.ask("Is it red?", photos[:1], GenerationOptions(max_new_tokens=3)).ids


def test_fp16_bundles_keep_fp16_around_the_pairs(
    two_dialects_fp16: Path, samples: Samples, tmp_path: Path
) -> None:
    report = quantise(two_dialects_fp16, tmp_path / "out", samples, INT4)
    assert report.passed or min(row.mean_cosine for row in report.stages) > 0.98
    graph = onnx.load(tmp_path / "out/onnx/segment_0.onnx", load_external_data=False).graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    scales = {kinds[node.input[1]] for node in graph.node if node.op_type == "DequantizeLinear"}
    assert scales == {onnx.TensorProto.FLOAT16}


def test_a_quantised_bundle_is_not_quantised_again(
    made: tuple[Path, QuantisationReport], samples: Samples, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="already"):
        quantise(made[0], tmp_path / "out", samples, INT8)
    assert not any(tmp_path.iterdir())


def test_blocks_that_do_not_fit_are_said(
    two_dialects: Path, samples: Samples, tmp_path: Path
) -> None:
    too_large = replace(INT4, block_size=100)
    with pytest.raises(InputError, match="no linear layers"):
        quantise(two_dialects, tmp_path / "out", samples, too_large)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "int3"}, "int3"),
        ({"parts": ["tail"]}, "tail"),
        ({"high_precision": ["nothing.weight"]}, "nothing.weight"),
        ({"choices": "many"}, "choices"),
    ],
)
def test_a_broken_recipe_says_where(tmp_path: Path, change: dict, message: str) -> None:
    whole = yaml.safe_load(write_recipe(Recipe("int8", ("decoder",), 64, (), ())))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**whole, **change}))
    with pytest.raises(InputError, match=message):
        read_recipe(path)


def test_a_recipe_for_another_model_is_refused(
    made: tuple[Path, QuantisationReport], two_dialects: Path, samples: Samples, tmp_path: Path
) -> None:
    path, report = made
    recipe = read_recipe(path / RECIPE)
    strange = replace(recipe, high_precision=(), choices=recipe.choices[1:])
    (tmp_path / "recipe.yaml").write_text(write_recipe(strange))
    options = replace(INT8 if report.precision == "int8" else INT4, recipe=tmp_path / "recipe.yaml")
    with pytest.raises(InputError, match="no choice for"):
        quantise(two_dialects, tmp_path / "out", samples, options)


def test_numbers_are_those_of_the_recipe(made: tuple[Path, QuantisationReport]) -> None:
    """The scale in the graph is the recipe's threshold over 127, in both dialects."""
    path, report = made
    recipe = read_recipe(path / RECIPE)
    thresholds = {it.first: it.threshold for it in recipe.choices if it.stage == "segment_0"}
    stage = Bundle.open(path).manifest.stage("segment_0")
    for file in (stage.graph, *stage.other_graphs.values()):
        graph = onnx.load(path / file, load_external_data=False).graph
        scales = {
            float(onnx.numpy_helper.to_array(tensor))
            for tensor in graph.initializer
            if tensor.name.endswith(".scale") and not tensor.dims
        }
        expected = {np.float32(it / 127) for it in thresholds.values() if it is not None}
        assert bool(scales) == (report.precision == "int8")
        # Pairs of the same value differ in the last bit.
        assert {f"{it:.5g}" for it in scales} == {f"{it:.5g}" for it in expected}
