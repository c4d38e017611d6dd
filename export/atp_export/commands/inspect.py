"""`atp-export inspect BUNDLE`."""

from __future__ import annotations

import argparse

from rich.console import Console

from atp_export.describe_bundle import print_bundle
from atp_runtime.cli.command import print_json
from atp_runtime.manifest import read_manifest
from atp_runtime.schema import to_json


def run(options: argparse.Namespace) -> int:
    """Shows what the manifest says; the files themselves are `verify`'s business."""
    manifest = read_manifest(options.bundle)
    if options.json:
        print_json(to_json(manifest))
    else:
        print_bundle(manifest, Console())
    return 0
