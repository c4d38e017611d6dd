"""The report's verdicts and its JSON form."""

from __future__ import annotations

import json
from dataclasses import replace

from atp_export.parity.measures import Measure, Tolerance
from atp_export.parity.report import Check, ParityReport
from atp_runtime.schema import from_json, to_json

GOOD = Measure("logits", "decode", 1.0, 1.0, 1e-6, passed=True)
NAN = Measure("present.0.key", "prefill", None, None, None, passed=False)


def report(*checks: Check) -> ParityReport:
    tolerances = {"stage": Tolerance(0.99, 0.01)}
    return ParityReport("full", "as asked", "fp16", ("native",), checks, tolerances, {}, 1.5, False)


def test_a_check_passes_when_all_its_measures_do() -> None:
    assert Check.of("head", "stage", "PyTorch", "", [GOOD, GOOD]).passed
    assert not Check.of("head", "stage", "PyTorch", "", [GOOD, NAN]).passed


def test_a_check_fails_when_nothing_was_measured() -> None:
    assert not Check.of("head", "stage", "PyTorch", "", []).passed
    assert not Check.impossible("pruned", "end to end", "PyTorch", "scores are NaN").passed


def test_json_reads_back_and_is_strict_when_measures_are_not_numbers() -> None:
    written = report(Check.of("segment_0", "stage", "PyTorch", "layer 0", [GOOD, NAN]))

    text = json.dumps(to_json(written), allow_nan=False)

    assert from_json(ParityReport, json.loads(text), source="report", fix="") == written


def test_json_names_each_tensor_with_its_measures() -> None:
    check = Check.of("head", "stage", "PyTorch", "", [replace(GOOD, norm_ratio=1.25)])

    (value,) = to_json(report(check))["checks"]

    assert value["measures"][0] == {
        "tensor": "logits",
        "when": "decode",
        "cosine": 1.0,
        "norm_ratio": 1.25,
        "max_abs_error": 1e-6,
        "passed": True,
    }
