"""Bundles of every kind of policy, quantised: what differs in their graphs is let be."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from tests.compressor import with_compressor
from tests.conftest import write_bundle

from atp_calibration.derived_bundle import deriving
from atp_calibration.quantisation.agreement import AgreementBackend
from atp_calibration.quantisation.command import quantise_bundle
from atp_calibration.quantisation.options import QuantisationOptions
from atp_calibration.samples import read_samples
from atp_runtime.bundle import Bundle
from atp_runtime.generation import GenerationOptions
from atp_runtime.session import Session

OPTIONS = {
    "int8": QuantisationOptions("int8", ("decoder", "vision")),
    "int4": QuantisationOptions("int4", ("decoder",), block_size=32),
}
POLICIES = {
    "structure": ("yopo", {"ffn_ratio": 2, "window": 3}),
    "merging": ("sparsevlm", {"keep": 8, "layers": 2}),
    "before the decoder, too": (
        "visionzip+illava",
        {"visionzip.keep": 8, "visionzip.contextual": 2, "illava.layer": 2},
    ),
}


@pytest.fixture(scope="module", params=POLICIES)
def bundle(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny checkpoint with a policy."""
    made = tmp_path_factory.mktemp("policy") / "bundle"
    policy, settings = POLICIES[request.param]
    options = {"precision": "fp32", "dialect": "portable", "policy": policy, "settings": settings}
    write_bundle(tiny_checkpoint, made, **options)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("precision", OPTIONS)
def test_stages_agree_with_those_they_were_made_of(
    bundle: Path, precision: str, scenes: Path, photos: list[Path], tmp_path: Path
) -> None:
    options, out = OPTIONS[precision], tmp_path / "quantised"
    with deriving(Bundle.open(bundle), out, "", options.request()) as new:
        report = quantise_bundle(new, read_samples(scenes, 2), options, threads=1)
    assert {row.name for row in report.stages} >= {"segment_0", "segment_1"}
    backend = AgreementBackend(Bundle.open(out), threads=1)
    with Session(Bundle.open(bundle), backend) as session:
        session.ask("Is it red?", photos[:1], GenerationOptions(max_new_tokens=3))
    for row in report.stages:
        # As in test_command.py: tiny widths average out less than a real model's.
        assert backend.found[row.name].cosine > (0.995 if precision == "int8" else 0.98)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_compressor_is_quantised_with_the_projector(
    precision: str, tiny_checkpoint: Path, scenes: Path, photos: list[Path], tmp_path: Path
) -> None:
    trained, bundle, out = (tmp_path / name for name in ("trained", "bundle", "quantised"))
    with_compressor(tiny_checkpoint, trained, 2)
    settings = {"precision": "fp32", "dialect": "portable", "settings": {"grid": 2}}
    write_bundle(trained, bundle, policy="quecc", **settings)
    options = QuantisationOptions(precision, ("projector",), block_size=32)
    with deriving(Bundle.open(bundle), out, "", options.request()) as new:
        quantise_bundle(new, read_samples(scenes, 2), options, threads=1)
    model = ir.load(out / "onnx" / "vision.onnx")
    made = {str(node.name) for node in model.graph if node.op_type == "DequantizeLinear"}
    assert any("quecc.keys.linear_1" in name for name in made)
    assert not any("quecc.text" in name for name in made)
    backend = AgreementBackend(Bundle.open(out), threads=1)
    with Session(Bundle.open(bundle), backend) as session:
        session.ask("Is it red?", photos[:1], GenerationOptions(max_new_tokens=3))
    assert backend.found["vision"].cosine > (0.995 if precision == "int8" else 0.98)
