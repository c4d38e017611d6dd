from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from atp_export.engines.dialect import choose_dialect
from atp_runtime.bundle import Bundle
from atp_runtime.errors import InputError
from atp_runtime.manifest import Manifest

Make = Callable[..., Manifest]


@pytest.fixture
def both(make_manifest: Make) -> Manifest:
    """Portable and native graphs over the same weights."""
    manifest = make_manifest()
    stages = tuple(
        replace(stage, other_graphs={"native": f"onnx/{stage.name}.native.onnx"})
        for stage in manifest.stages
    )
    return replace(manifest, stages=stages, other_dialects={"native": 24})


def test_native_graphs_are_built_where_tensorrt_has_their_operators(both: Manifest) -> None:
    assert choose_dialect(both, has_native=True) == "native"
    assert choose_dialect(both, has_native=False) == "portable"


def test_fp32_is_built_from_portable_graphs(both: Manifest) -> None:
    assert choose_dialect(replace(both, precision="fp32"), has_native=True) == "portable"


def test_what_the_bundle_has_is_built(make_manifest: Make) -> None:
    assert choose_dialect(make_manifest(dialect="portable"), has_native=True) == "portable"
    native = make_manifest(dialect="native", precision="fp32")
    assert choose_dialect(native, has_native=True) == "native"


def test_the_command_line_decides(both: Manifest) -> None:
    assert choose_dialect(both, has_native=True, wanted="portable") == "portable"


def test_native_graphs_need_their_operators(make_manifest: Make, both: Manifest) -> None:
    with pytest.raises(InputError, match="native only") as caught:
        choose_dialect(make_manifest(dialect="native"), has_native=False)
    assert "--dialect portable" in caught.value.fix
    with pytest.raises(InputError, match="--dialect native"):
        choose_dialect(both, has_native=False, wanted="native")


def test_a_bundle_is_seen_in_a_dialect(both: Manifest, tmp_path: object) -> None:
    bundle = Bundle(tmp_path, both)  # type: ignore[arg-type]
    seen = bundle.in_dialect("native").manifest
    assert seen.stage("head").graph == "onnx/head.native.onnx"
    assert seen.stage("head").data == both.stage("head").data


def test_a_dialect_the_bundle_lacks_is_refused(make_manifest: Make, tmp_path: object) -> None:
    with pytest.raises(InputError, match="native"):
        Bundle(tmp_path, make_manifest()).in_dialect("native")  # type: ignore[arg-type]
