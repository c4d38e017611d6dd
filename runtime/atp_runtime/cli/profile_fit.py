"""What `atp-profile fit` does: a device's efficiencies from a table that was measured on it."""

from __future__ import annotations

import argparse

from atp_runtime.cli.command import print_json, print_note
from atp_runtime.errors import InputError
from atp_runtime.evaluation.json_files import write_declared
from atp_runtime.latency.device import read_device
from atp_runtime.latency.fit import fit_efficiencies, observations
from atp_runtime.latency.table import read_table
from atp_runtime.manifest import read_manifest
from atp_runtime.schema import to_json


def fit(options: argparse.Namespace) -> int:
    """Fits and writes a device's file; returns the exit code."""
    if options.output.suffix != ".json":
        raise InputError(
            f"{options.output}",
            why="--predict knows files of devices by the suffix .json.",
            fix=f"write to {options.output.with_suffix('.json')}.",
        )
    manifest = read_manifest(options.bundle)
    like = read_device(options.like)
    table = read_table(options.table, manifest)
    found = fit_efficiencies(observations(manifest, table, like))
    source = f"{like.source}; fitted to times of {table.setting}"
    name = options.name or table.setting.machine
    device = found.of(like).renamed(name, source)
    write_declared(options.output, device)
    if options.json:
        print_json({"error": found.error, **to_json(device)})
        return 0
    print(
        f"{name}: {100 * found.compute:.1f} % of the arithmetic peak, "
        f"{100 * found.bandwidth:.0f} % of the bandwidth, {found.layer_overhead_ms:.3f} ms per "
        f"layer; off by {100 * found.error:.0f} % on average"
    )
    if not options.quiet:
        print_note(f"device: {options.output}")
    return 0
