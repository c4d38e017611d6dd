from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atp_runtime.errors import InputError
from atp_runtime.manifest import AxisRange, FileRecord, Manifest, dump_manifest, read_manifest
from atp_runtime.pruning_point import PruningPoint

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="session")
def manifest(hand_made: Path) -> Manifest:
    return read_manifest(hand_made)


@pytest.fixture
def changed(manifest: Manifest, tmp_path: Path) -> Callable[[Change], Path]:
    """Writes the manifest after a change to its JSON; returns the bundle's directory."""

    def write(change: Change) -> Path:
        value = json.loads(dump_manifest(manifest))
        change(value)
        (tmp_path / "manifest.json").write_text(json.dumps(value))
        return tmp_path

    return write


numbers = st.integers(min_value=0, max_value=2**53)
axis_ranges = st.lists(numbers, min_size=3, max_size=3).map(lambda sizes: AxisRange(*sorted(sizes)))
names = st.from_regex(r"[A-Za-z0-9_]{1,12}(/[A-Za-z0-9_.]{1,12})?", fullmatch=True).filter(
    lambda name: ".." not in name and "/." not in name
)
files = st.dictionaries(
    names, st.builds(FileRecord, numbers, st.from_regex(r"[0-9a-f]{64}", fullmatch=True))
)
parameters = st.dictionaries(
    st.text(), st.none() | st.integers() | st.floats(allow_nan=False) | st.lists(st.integers())
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes=st.dictionaries(st.text(), axis_ranges),
    more_files=files,
    rule=st.text(),
    parameters=parameters,
    notice=st.none() | st.text(),
)
def test_a_manifest_comes_back_the_same_when_written_and_read(
    manifest: Manifest,
    tmp_path: Path,
    axes: dict[str, AxisRange],
    more_files: dict[str, FileRecord],
    rule: str,
    parameters: dict[str, Any],
    notice: str | None,
) -> None:
    first, *others = manifest.stages
    point = PruningPoint(first.layers[1], rule, parameters, weights="points.0.")
    written = replace(
        manifest,
        axes=axes,
        files={**manifest.files, **more_files},
        stages=(replace(first, pruning=point), *others),
        provenance=replace(manifest.provenance, notice=notice),
    )
    (tmp_path / "manifest.json").write_text(dump_manifest(written), encoding="utf-8")
    assert read_manifest(tmp_path) == written


def test_reading_says_that_it_is_no_bundle_when_there_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"{'a': 1}", b"\0" * 9, b"[" * 99999, b"9" * 9999]
)
def test_reading_refuses_a_manifest_that_is_not_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("value", [[], None, 1, {}, {"format": "onnx"}])
def test_reading_refuses_json_that_is_no_manifest(tmp_path: Path, value: Any) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="not a manifest"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("version", [0, 1, 3, 99, None, "2"])
def test_reading_refuses_another_schema_version(
    changed: Callable[[Change], Path], version: Any
) -> None:
    bundle = changed(lambda value: value.update(schema_version=version))
    with pytest.raises(InputError, match="schema version") as caught:
        read_manifest(bundle)
    assert "install" in caught.value.fix


def test_reading_tells_a_newer_schema_before_its_unknown_fields(
    changed: Callable[[Change], Path],
) -> None:
    bundle = changed(lambda value: value.update(schema_version=3, engines={}))
    with pytest.raises(InputError, match="schema version 3"):
        read_manifest(bundle)


ESCAPES = [
    "/etc/passwd",
    "../secret",
    "onnx/../../secret",
    "onnx/..",
    "..",
    "onnx\\..\\..\\secret",
    "C:/Windows/system.ini",
    "C:secret",
    "//host/share",
    "",
]


def _name_file(value: dict[str, Any], path: str) -> None:
    value["files"][path] = {"bytes": 1, "sha256": "0" * 64}


PLACES: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "files": _name_file,
    "graph": lambda value, path: value["stages"][0].update(graph=path),
    "data": lambda value, path: value["stages"][0].update(data=[path]),
    "embedding": lambda value, path: value["embedding"].update(file=path),
    "processor": lambda value, path: value.update(processor=path),
    "pruning_weights": lambda value, path: value.update(pruning_weights=path),
}


@pytest.mark.parametrize(
    ("place", "path"),
    # An empty name of the pruning weights is none at all.
    [(p, e) for p in sorted(PLACES) for e in ESCAPES if (p, e) != ("pruning_weights", "")],
)
def test_reading_refuses_a_path_that_leaves_the_bundle(
    changed: Callable[[Change], Path], place: str, path: str
) -> None:
    bundle = changed(lambda value: PLACES[place](value, path))
    with pytest.raises(InputError, match="path") as caught:
        read_manifest(bundle)
    assert "inside its bundle" in caught.value.why


@pytest.mark.parametrize("place", ["graph", "data", "embedding", "pruning_weights"])
def test_reading_refuses_a_file_without_a_recorded_hash(
    changed: Callable[[Change], Path], place: str
) -> None:
    bundle = changed(lambda value: PLACES[place](value, "onnx/unknown.bin"))
    with pytest.raises(InputError, match="no entry in `files`"):
        read_manifest(bundle)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda v: v["stages"][1].update(layers=[3, 3]), "segment_1 covers layers 3 to 3"),
        (lambda v: v["stages"][1].update(layers=[1, 3]), "segment_1 covers layers 1 to 3"),
        (lambda v: v["stages"].pop(1), "segment_2 covers layers 3 to 5"),
        (lambda v: v["stages"].pop(2), "segments end at layer 3"),
        (lambda v: v["text"].update(layers=6), "segments end at layer 5"),
        (lambda v: v["stages"][0]["pruning"].update(before_layer=3), "prunes before layer 3"),
        (lambda v: v["axes"].update(tokens={"minimum": 5, "typical": 1, "maximum": 9}), "range"),
        (lambda v: v["stages"][0].update(layers=[0]), "a list of 2"),
        (lambda v: v.pop("text"), "field 'text' is missing"),
        (lambda v: v.update(extra=1), "unknown field 'extra'"),
    ],
)
def test_reading_refuses_parts_that_contradict_each_other(
    changed: Callable[[Change], Path], change: Change, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        read_manifest(changed(change))


def test_a_stage_is_found_by_its_name(manifest: Manifest) -> None:
    assert manifest.stage("segment_1").layers == (2, 3)


def test_an_unknown_stage_is_refused_with_the_names_there_are(manifest: Manifest) -> None:
    with pytest.raises(InputError, match="no stage 'tail'") as caught:
        manifest.stage("tail")
    assert "segment_0" in caught.value.why
    assert "head" in caught.value.why


def test_segments_are_the_stages_of_the_decoder_in_order(manifest: Manifest) -> None:
    assert [stage.name for stage in manifest.segments] == ["segment_0", "segment_1", "segment_2"]


@pytest.mark.parametrize("sizes", [(-1, 0, 1), (2, 1, 3), (0, 4, 3)])
def test_an_axis_range_must_rise(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="not a range"):
        AxisRange(*sizes)


def in_two_dialects(manifest: Manifest) -> Manifest:
    stages = tuple(
        replace(stage, other_graphs={"native": f"onnx/{stage.name}.native.onnx"})
        for stage in manifest.stages
    )
    record = FileRecord(0, "0" * 64)
    files = {stage.other_graphs["native"]: record for stage in stages}
    files = {**manifest.files, **files}
    return replace(manifest, stages=stages, other_dialects={"native": 24}, files=files)


def test_the_own_dialect_is_the_manifest_itself(manifest: Manifest) -> None:
    assert manifest.in_dialect("portable") is manifest


def test_another_dialect_takes_the_place_of_the_own_one(manifest: Manifest) -> None:
    both = in_two_dialects(manifest)

    native = both.in_dialect("native")

    assert both.dialects == ("portable", "native")
    assert (native.dialect, native.opset) == ("native", 24)
    assert [stage.graph for stage in native.stages] == [
        f"onnx/{stage.name}.native.onnx" for stage in manifest.stages
    ]
    assert native.in_dialect("portable") == both


def test_a_dialect_that_is_not_there_is_refused(manifest: Manifest) -> None:
    with pytest.raises(InputError, match="dialect 'native'") as caught:
        manifest.in_dialect("native")
    assert "portable" in caught.value.why
    assert "--dialect native" in caught.value.fix


def test_every_stage_must_have_the_dialects_of_the_manifest(
    manifest: Manifest, tmp_path: Path
) -> None:
    both = in_two_dialects(manifest)
    first, *others = both.stages
    torn = replace(both, stages=(replace(first, other_graphs={}), *others))
    (tmp_path / "manifest.json").write_text(dump_manifest(torn))
    with pytest.raises(InputError, match=f"{first.name} has graphs in no other dialects"):
        read_manifest(tmp_path)


def test_graphs_of_other_dialects_need_a_recorded_hash_too(
    manifest: Manifest, tmp_path: Path
) -> None:
    both = replace(in_two_dialects(manifest), files=manifest.files)
    (tmp_path / "manifest.json").write_text(dump_manifest(both))
    with pytest.raises(InputError, match=r"native\.onnx' has no entry"):
        read_manifest(tmp_path)


def test_heads_must_cover_the_vocabulary(changed: Callable[[Change], Path]) -> None:
    def forget_a_logit(value: dict[str, Any]) -> None:
        value["stages"][-1]["outputs"][0]["shape"][1] -= 1

    with pytest.raises(InputError, match="its heads give 10 logits") as caught:
        read_manifest(changed(forget_a_logit))
    assert "11 tokens" in caught.value.why
