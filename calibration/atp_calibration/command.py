"""What `atp-calibrate` does with its options."""

from __future__ import annotations

import argparse
import sys

from atp_calibration.budget.options import budget_options
from atp_calibration.derived_bundle import deriving
from atp_calibration.quantisation.options import quantisation_options
from atp_calibration.quantisation.report import COSINE_BAR, QuantisationReport
from atp_calibration.samples import Samples, read_samples
from atp_runtime.bundle import Bundle
from atp_runtime.cli.command import print_json, print_note
from atp_runtime.errors import InputError
from atp_runtime.evaluation.formats.format import ReadOptions
from atp_runtime.schema import to_json


def calibrate(options: argparse.Namespace) -> int:
    """Calibrates; returns the exit code."""
    quantisation, budget = quantisation_options(options), budget_options(options)
    if quantisation is None and budget is None:
        raise InputError(
            "nothing to do",
            why="neither a precision nor a budget was given.",
            fix="add --precision, --target-tokens, --target-speedup or --target-ttft.",
        )
    source = Bundle.open(options.bundle)
    samples = _samples(options)
    request = {
        "samples": [sample.question.id for sample in samples.samples],
        "data": samples.fingerprint,
        "seed": samples.seed,
        "quantisation": quantisation and quantisation.request(),
        "budget": budget and budget.request(),
    }
    stream = None if options.quiet or options.json else sys.stderr
    document: dict[str, object] = {"skipped": to_json(samples.skipped)}
    with deriving(source, options.out, options.command, request) as new:
        if quantisation:
            from atp_calibration.quantisation.command import quantise_bundle  # noqa: PLC0415

            report = quantise_bundle(
                new, samples, quantisation, threads=options.threads, stream=stream
            )
            document["quantisation"] = to_json(report)
            if stream:
                _tell(report)
        if budget:
            from atp_calibration.budget.command import fit_budget  # noqa: PLC0415

            fitted = fit_budget(new, samples, budget, threads=options.threads, stream=stream)
            document["budget"] = to_json(fitted)
    if options.json:
        print_json(document)
    else:
        print(options.out)
    return 0


def _samples(options: argparse.Namespace) -> Samples:
    read = ReadOptions(images=options.images)
    samples = read_samples(
        options.data, options.samples, options.seed, format_name=options.format, read=read
    )
    if samples.skipped and not (options.quiet or options.json):
        first = samples.skipped[0]
        print_note(f"{len(samples.skipped)} samples skipped; {first.id}: {first.problem}")
    return samples


def _tell(report: QuantisationReport) -> None:
    before = sum(row.bytes_before for row in report.stages)
    after = sum(row.bytes_after for row in report.stages)
    least = min(report.stages, key=lambda row: row.mean_cosine)
    print_note(
        f"{report.precision}: {before / 1e6:.1f} MB of weights became {after / 1e6:.1f} MB; "
        f"cosine at least {least.mean_cosine:.5f} ({least.name})"
    )
    if not report.passed:
        print_note(
            f"{least.name} is below {COSINE_BAR}: see calibration/report.md for its worst layers, "
            "and leave some as they are with --keep-high-precision N"
        )
