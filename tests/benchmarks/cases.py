"""The measurements; each returns the rows of its table."""

from __future__ import annotations

import shutil
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tests.benchmarks.budgets import budgets, deadlines
from tests.benchmarks.decoding import THREADS, BundleRunner, TransformersRunner
from tests.benchmarks.forced_selection import counts_for_average
from tests.benchmarks.load import Load, measure_load
from tests.benchmarks.measure import Row, at_least, at_most, interleaved, ratio, run_child
from tests.benchmarks.overhead import measure_overhead
from tests.benchmarks.quantised import quantised
from tests.benchmarks.scoring import scoring_cost
from tests.benchmarks.workbench import BIN, DEMO, NARROW, OUTPUT, WIDE, WORK, bundle, checkpoint
from tests.runtime.latency.published import leave_one_out

from atp_runtime.decoder_results import StageCall
from atp_runtime.manifest import NATIVE, PORTABLE, Manifest, read_manifest
from atp_runtime.statistics import cached_bytes, mean_visual_tokens, run_flops
from atp_runtime.structure_work import paper_flops

GIB = 2**30
KEPT = (576, 288, 144, 72, 36)
CAPACITY = 768  # positions of the caches for 576 visual tokens and a question
STEPS = 12
STEPS_TIMED = 100


def startup(_shape: str, rounds: int) -> list[Row]:
    """How long `--help` takes."""
    log = OUTPUT / "startup.log"
    seconds = [run_child([str(BIN / "atp-run"), "--help"], log).seconds for _ in range(rounds + 2)]
    return [at_most("atp-run --help", min(seconds), 0.5, "s")]


def export(shape: str, _rounds: int) -> list[Row]:
    """Time against copying the same bytes, and peak memory, in both dialects."""
    source, rows = checkpoint(shape), []
    for dialect in ("portable", "native"):
        target = WORK / "export-timing"
        copy = WORK / "copy-timing"
        for path in (target, copy):
            shutil.rmtree(path, ignore_errors=True)
        # The copying command comes first and warms the page cache for both.
        copied = run_child(["/bin/cp", "-rL", str(source), str(copy)], OUTPUT / "copy.log")
        command = [str(BIN / "atp-export"), str(source), str(target), "--precision", "fp16"]
        options = ["--dialect", dialect, "--parity", "off", "--quiet"]
        made = run_child([*command, *options], OUTPUT / "export.log")
        if made.code or copied.code:
            raise RuntimeError(f"export exited with {made.code}: see {OUTPUT / 'export.log'}")
        rows += [
            Row(f"{shape} {dialect}: copying the checkpoint", copied.seconds, "s"),
            Row(f"{shape} {dialect}: exporting it", made.seconds, "s"),
            at_most(f"{shape} {dialect}: export / copy", made.seconds / copied.seconds, 4),
            at_most(f"{shape} {dialect}: peak memory", made.peak / GIB, 4, "GiB"),
        ]
        for path in (target, copy):
            shutil.rmtree(path, ignore_errors=True)
    return rows


def segments(shape: str, rounds: int) -> list[Row]:
    """Dense in four segments against dense in one."""
    one = BundleRunner(bundle(shape, "dense", "--precision", "fp32", "--dense"))
    four = BundleRunner(bundle(shape, "pruned", "--precision", "fp32"))
    prefill = interleaved(
        {"one": lambda: one.prefill(576), "four": lambda: four.prefill(576)}, rounds=rounds
    )
    decode = interleaved(
        {"one": lambda: one.decode(STEPS), "four": lambda: four.decode(STEPS)}, rounds=rounds
    )
    gflops = prefill_flops(one.manifest, one.prefill(576).calls) / 1e9
    return [
        Row("dense prefill, 640 tokens", statistics.median(prefill["one"]), "s"),
        Row("dense prefill", gflops / statistics.median(prefill["one"]), "GFLOP/s"),
        at_most("prefill, 4 segments / 1", ratio(prefill["four"], prefill["one"]), 1.03),
        at_most("decode, 4 segments / 1", ratio(decode["four"], decode["one"]), 1.03),
    ]


def dialects(shape: str, rounds: int) -> list[Row]:
    """One operator for attention against many, at two lengths, and decode behind them."""
    path, rows = bundle(shape, "dense", "--precision", "fp32", "--dense"), []
    held = {name: BundleRunner(path, dialect=name) for name in (PORTABLE, NATIVE)}
    for kept in (576, 144):
        prefill = interleaved(
            {name: partial(it.prefill, kept) for name, it in held.items()}, rounds=rounds
        )
        decode = interleaved(
            {name: partial(it.decode, STEPS) for name, it in held.items()}, rounds=rounds
        )
        for what, times in (("prefill", prefill), ("decode", decode)):
            value = ratio(times[PORTABLE], times[NATIVE])
            rows.append(Row(f"{kept} visual: {what}, portable / native", value, "x"))
    return rows


def pruning(shape: str, rounds: int) -> list[Row]:
    """Measured speed-up at an all-layer average of 144 visual tokens against the FLOPs'."""
    dense = BundleRunner(bundle(shape, "dense", "--precision", "fp32", "--dense"))
    pruned = BundleRunner(bundle(shape, "pruned", "--precision", "fp32"))
    keep = keep_counts(pruned, 144)
    average = mean_visual_tokens(pruned.manifest, (576, *keep))
    times = interleaved(
        {"dense": lambda: dense.prefill(576), "pruned": lambda: pruned.prefill(576, keep)},
        rounds=rounds,
    )
    measured = ratio(times["dense"], times["pruned"])
    flops_dense = prefill_flops(dense.manifest, dense.prefill(576).calls)
    predicted = flops_dense / prefill_flops(pruned.manifest, pruned.prefill(576, keep).calls)
    return [
        Row("visual tokens, all-layer average", average, ""),
        Row("prefill, dense", statistics.median(times["dense"]), "s"),
        Row("prefill, pruned", statistics.median(times["pruned"]), "s"),
        Row("speed-up predicted by FLOPs", predicted, "x"),
        Row("speed-up measured", measured, "x"),
        at_least("measured / predicted", measured / predicted, 0.9),
    ]


def prefill_flops(manifest: Manifest, calls: Sequence[StageCall]) -> int:
    """Floating-point operations of the segments among `calls`."""
    stages = {stage.name: stage for stage in manifest.segments}
    return sum(
        run_flops(manifest, stages[call.stage], call.tokens, call.past, call.visual)
        for call in calls
        if call.stage in stages
    )


def keep_counts(runner: BundleRunner, average: float) -> tuple[int, ...]:
    """Counts after three points, each half of the one before, for an all-layer average."""
    spans = [stage.layers[1] - stage.layers[0] for stage in runner.manifest.segments]
    return counts_for_average(spans, 576, average)


def transformers(shape: str, rounds: int) -> list[Row]:
    """First token and tokens/s against Transformers at every kept length."""
    ours = BundleRunner(bundle(shape, "dense", "--precision", "fp32", "--dense"))
    theirs = TransformersRunner(checkpoint(shape), ours.hidden)
    rows = []
    for kept in KEPT:
        first = interleaved(
            {
                "ours": lambda kept=kept: ours.prefill(kept),
                "theirs": lambda kept=kept: theirs.prefill(kept),
            },
            rounds=rounds,
        )
        steps = interleaved(
            {"ours": lambda: ours.decode(STEPS), "theirs": lambda: theirs.decode(STEPS)},
            rounds=rounds,
        )
        per_token = 1e3 * statistics.median(steps["ours"]) / STEPS
        rows += [
            Row(f"{kept} visual: first token", statistics.median(first["ours"]), "s"),
            at_least(
                f"{kept} visual: first token, Transformers / ours",
                ratio(first["theirs"], first["ours"]),
                1,
            ),
            Row(f"{kept} visual: per token", per_token, "ms"),
            at_least(
                f"{kept} visual: per token, Transformers / ours",
                ratio(steps["theirs"], steps["ours"]),
                1,
            ),
        ]
    return rows


def overhead(shape: str, rounds: int) -> list[Row]:
    """Python's share of a decode step and of a prefill in four segments."""
    path = bundle(shape, "pruned", "--precision", "fp32")
    token, prompt = measure_overhead(path, threads=THREADS, steps=STEPS_TIMED, prompts=rounds)
    return [
        at_most(
            f"per token, outside of the stages ({token.count})", 1e3 * token.between_runs, 0.5, "ms"
        ),
        Row("per token, binding of inputs and outputs included", 1e3 * token.with_binding, "ms"),
        Row(f"per prompt, outside of the stages ({prompt.count})", 1e3 * prompt.between_runs, "ms"),
        Row("per prompt, binding included", 1e3 * prompt.with_binding, "ms"),
    ]


def load(shape: str, rounds: int) -> list[Row]:
    """Start of a process to the first token against reading the weights, and peak memory."""
    path, rows = bundle(shape, "pruned", "--precision", "fp32"), []
    manifest = read_manifest(path)
    weights = sum(it.stat().st_size for it in (path / "onnx").iterdir())
    caches = CAPACITY * sum(cached_bytes(manifest, stage) for stage in manifest.segments)
    kinds = {"one answer": "mapped", "many answers": "packed"}
    measure_load(path, "text", "mapped", cold=False)  # hashes the files, once per machine
    for cold in (False, True):
        state = "cold" if cold else "warm"
        found: dict[str, list[Load]] = defaultdict(list)
        for _ in range(rounds):
            found["read"].append(measure_load(path, "read", cold=cold))
            for name, kind in kinds.items():
                found[name].append(measure_load(path, "text", kind, cold=cold))
        read = [it.seconds for it in found["read"]]
        rows.append(Row(f"{state}: reading the weights", statistics.median(read), "s"))
        for name in kinds:
            times = ratio([it.seconds for it in found[name]], read)
            cpu = statistics.median(it.cpu for it in found[name])
            rows += [
                at_most(f"{state}, {name}: load to first token / reading", times, 1.2),
                Row(f"{state}, {name}: seconds of CPU", cpu, "s"),
            ]
    for name, kind in kinds.items():
        peak = measure_load(path, "photo", kind, cold=False)
        over = (peak.peak - weights - caches) / 2**20
        rows += [
            at_most(f"{name} about a photo: peak - weights - caches", over, 300, "MiB"),
            Row(f"{name}: memory that no file backs", peak.owned / 2**20, "MiB"),
        ]
    return rows


Case = Callable[[str, int], Sequence[Row]]


def predictor(_shape: str, _rounds: int) -> list[Row]:
    """Predicted against published times on Orin, each model's from those of the others."""
    rows = leave_one_out()
    errors = sorted(abs(row.error) for row in rows)
    told = [
        Row(
            f"{row.device}, {row.model}, {row.tokens} token(s), {1e3 * row.published:.1f} ms",
            row.predicted / row.published,
            "x",
        )
        for row in rows
    ]
    return [
        *told,
        at_most("median error", errors[len(errors) // 2], 0.15),
        at_most("worst error", errors[-1], 0.30),
    ]


STRUCTURES = {"25 %": (24, 2), "12 %": (17, 4)}
"""YOPO's released 7B configurations: kept heads, rounded, of the layers before the cut, and r."""


def structure(shape: str, rounds: int) -> list[Row]:
    """Measured speed-up of work that visual tokens are spared against the FLOPs'."""
    dense = BundleRunner(bundle(shape, "dense", "--precision", "fp32", "--dense"))
    flops = prefill_flops(dense.manifest, dense.prefill(576).calls)
    rows = []
    for name, (kept, ratio_) in STRUCTURES.items():
        spared = BundleRunner(_structured(shape, kept, ratio_))
        result = spared.prefill(576, (0,))
        predicted = flops / prefill_flops(spared.manifest, result.calls)
        times = interleaved(
            {
                "dense": lambda: dense.prefill(576),
                "spared": lambda spared=spared: spared.prefill(576, (0,)),
            },
            rounds=rounds,
        )
        measured = ratio(times["dense"], times["spared"])
        of_visual = paper_flops(spared.manifest.text, 576, spared.manifest.structure)
        formula = paper_flops(spared.manifest.text, 576) / of_visual
        rows += [
            Row(f"{name}: prefill, dense", statistics.median(times["dense"]), "s"),
            Row(f"{name}: prefill, spared", statistics.median(times["spared"]), "s"),
            Row(f"{name}: speed-up of visual tokens by the paper's formula", formula, "x"),
            Row(f"{name}: speed-up predicted by FLOPs, text included", predicted, "x"),
            Row(f"{name}: speed-up measured", measured, "x"),
            at_least(f"{name}: measured / predicted", measured / predicted, 0.8),
        ]
    return rows


def _structured(shape: str, kept: int, ratio_: int) -> Path:
    """A bundle whose visual tokens have that many heads, and leave in the middle."""
    heads = np.zeros((2, 32), dtype=np.bool_)
    heads[:, np.random.default_rng(kept).permutation(32)[:kept]] = True
    file = checkpoint(shape) / f"heads_{kept}.npy"
    np.save(file, heads)
    settings = (f"heads={file.name}", f"ffn_ratio={ratio_}", "window=5", "cut_layer=1")
    words = [word for setting in settings for word in ("--set", setting)]
    return bundle(shape, f"yopo-{kept}-{ratio_}", "--precision", "fp32", "--policy", "yopo", *words)


POLICIES = (
    *("atp", "fastv", "pyramiddrop", "sparsevlm", "illava", "vtw"),
    *("fastervlm", "divprune", "inflection", "visionzip", "prumerge", "prumerge_plus"),
)
"""Of those in docs/policies.md, with their own settings, that look at scores or features."""


def policies(shape: str, rounds: int) -> list[Row]:
    """What scorers and rules take, beside a prefill that prunes nothing."""
    dense = BundleRunner(bundle(shape, "dense", "--precision", "fp32", "--dense"))
    everything = dense.manifest.vision.tokens
    times = interleaved({"dense": lambda: dense.prefill(everything)}, rounds=rounds)
    prefill = min(times["dense"])
    dense.decoder.close()
    rows = [Row("prefill, dense", prefill, "s")]
    for policy in POLICIES:
        chosen = () if policy == "atp" else ("--policy", policy)
        path = bundle(shape, f"policy-{policy}", "--precision", "fp32", *chosen)
        cost = scoring_cost(path, rounds)
        shutil.rmtree(path)  # as large as the checkpoint, each
        rows += [
            Row(f"{policy}: in the graphs", 1e3 * cost.graphs, "ms"),
            Row(f"{policy}: on the host", 1e3 * cost.host, "ms"),
            at_most(f"{policy}: both / prefill, per cent", 100 * cost.total / prefill, 1, "%"),
        ]
    return rows


CASES: dict[str, tuple[Case, str]] = {
    "startup": (startup, "1b"),
    "segments": (segments, "1b"),
    "dialects": (dialects, "1b"),
    "pruning": (pruning, "1b"),
    "transformers": (transformers, "1b"),
    "export": (export, "7b"),
    "structure": (structure, WIDE),
    "quantised": (quantised, "1b"),
    "policies": (policies, "1b"),
    "budgets": (budgets, DEMO),
    "deadlines": (deadlines, DEMO),
    "overhead": (overhead, NARROW),
    "load": (load, "1b"),
    "predictor": (predictor, "published"),
}
