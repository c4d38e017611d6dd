"""Whether a bundle's engines can be built here, and whether all of it can run here."""

from __future__ import annotations

import shutil
from pathlib import Path

from atp_export.doctor.engines import StageEngine, engines_finding, stage_engines, this_target
from atp_export.doctor.finding import Finding, Probe, look
from atp_export.doctor.memory import disk_swap_bytes, gigabytes, memory_bytes
from atp_export.doctor.system import System
from atp_export.engines.memory import plan_bytes
from atp_runtime.engine_set import Target
from atp_runtime.errors import InputError
from atp_runtime.latency.memory import BUILD_FACTOR, RUNTIME_BYTES, run_needs, weight_bytes
from atp_runtime.latency.memory import build_bytes as bytes_to_build
from atp_runtime.manifest import Manifest, read_manifest

_MORE_MEMORY = (
    "close programs, and do without a desktop (sudo systemctl set-default multi-user.target, then "
    "restart)"
)


def examine_bundle(bundle: Path, system: System) -> tuple[Finding, ...]:
    """Looks at a bundle on a machine; no file of it but `manifest.json` and `engines.json` is read.

    Raises:
        InputError: It is no bundle.
    """
    manifest = read_manifest(bundle)
    try:
        engines = stage_engines(bundle, manifest, _target(system))
    except InputError as error:
        return (
            _files("files", bundle, manifest),
            Finding("engines", error.what, ok=False, fix=error.fix),
        )
    missing = [engine for engine in engines if engine.problem]
    findings = [
        _files("files", bundle, manifest),
        engines_finding("engines", bundle, system, engines),
        *(look(it.stage.name, _stage_probe(manifest, it), system) for it in engines),
    ]
    if missing:
        findings.append(_room("room for engines", bundle, manifest, missing))
    findings.append(look("running", _run_probe(manifest, engines), system))
    return tuple(findings)


def _target(system: System) -> Target | None:
    try:
        return this_target(system)
    except (OSError, LookupError):
        return None  # `engines_finding` tells why


def _files(subject: str, bundle: Path, manifest: Manifest) -> Finding:
    """Whether all are there, by their sizes."""
    bad = [
        name
        for name, record in manifest.files.items()
        if not (bundle / name).is_file() or (bundle / name).stat().st_size != record.bytes
    ]
    if bad:
        found = f"{len(bad)} of {len(manifest.files)} missing or of another size, such as {bad[0]}"
        return Finding(subject, found, ok=False, fix="copy the bundle again.")
    total = sum(record.bytes for record in manifest.files.values())
    found = f"{len(manifest.files)}, {gigabytes(total)}, told by their sizes"
    return Finding(subject, f"{found}; their hashes are checked when atp-run first opens them")


def _stage_probe(manifest: Manifest, engine: StageEngine) -> Probe:
    """Whether a stage's engine is there, and whether it can be built."""
    weights = weight_bytes(manifest, engine.stage)

    def probe(subject: str, system: System) -> Finding:
        needed, free = bytes_to_build(weights), memory_bytes(system)["MemAvailable"]
        building = f"building takes about {gigabytes(needed)} of {gigabytes(free)} available"
        if not engine.problem and engine.engine:
            plan = gigabytes(engine.engine.record.bytes)
            return Finding(subject, f"engine of {plan} is there; {building}")
        found = f"{engine.problem}; {building}"
        if needed <= free:
            return Finding(subject, found)
        fix = _smaller(engine, weights, free)
        if needed <= free + disk_swap_bytes(system):
            return Finding(subject, f"{found}: only with swap, if at all", ok=None, fix=fix)
        return Finding(subject, found, ok=False, fix=f"{fix}; add a swap file.")

    return probe


def _smaller(engine: StageEngine, weights: int, free: int) -> str:
    """How a stage is made to fit; a layer cannot be cut, nor can vision and head."""
    first, last = engine.stage.layers
    largest = (free - RUNTIME_BYTES) // BUILD_FACTOR
    if last - first > 1 and largest >= weights / (last - first):
        size = f"{largest // 10**6}MB"
        return f"export again with --max-segment-bytes {size}; or {_MORE_MEMORY}"
    return _MORE_MEMORY


def _room(subject: str, bundle: Path, manifest: Manifest, missing: list[StageEngine]) -> Finding:
    needed = sum(plan_bytes(weight_bytes(manifest, engine.stage)) for engine in missing)
    free = shutil.disk_usage(bundle).free
    found = f"about {gigabytes(needed)} of {gigabytes(free)} free on the disk"
    return Finding(subject, found, ok=needed <= free, fix="free space on the bundle's disk.")


def _run_probe(manifest: Manifest, engines: list[StageEngine]) -> Probe:
    """Whether weights, caches and scratch memory fit."""
    whole = all(not engine.problem for engine in engines)
    recorded = [engine.engine for engine in engines if engine.engine] if whole else []

    def probe(subject: str, system: System) -> Finding:
        needs, free = run_needs(manifest, recorded), memory_bytes(system)["MemAvailable"]
        found = (
            f"weights {gigabytes(needs.weights)}, caches {gigabytes(needs.caches)} for "
            f"{needs.tokens} tokens, scratch {gigabytes(needs.scratch)}, programs "
            f"{gigabytes(needs.runtime)}: {gigabytes(needs.total)} of {gigabytes(free)} available"
        )
        fix = (
            f"{_MORE_MEMORY}; build engines with a lower --max-tokens; or export in a smaller "
            "precision. Swap does not help: the GPU cannot use it."
        )
        return Finding(subject, found, ok=needs.total <= free, fix=fix)

    return probe
