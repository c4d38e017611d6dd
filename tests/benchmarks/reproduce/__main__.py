"""`just reproduce`: measure the demo's published scores, write them with the promises they meet.

Dense and pruned, baselines at equal tokens, the paper's ablations, the other artwork style and
easy-VQA, all with FP32 bundles on the CPU runtime; and the same questions in PyTorch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.reproduce.report import write_report
from tests.benchmarks.reproduce.work import TOKENS, Work, kept_at_points, kept_once
from tests.benchmarks.workbench import OUTPUT

SCENES, OTHER, EASY = "scenes-test", "scenes-other-style", "easy-vqa-test"


def main() -> int:
    """Measures what is not measured yet; exit code 1 if a promise is not met."""
    parser = argparse.ArgumentParser(prog="just reproduce", description=__doc__)
    parser.add_argument(
        "--limit",
        type=int,
        default=2000,
        metavar="N",
        help="questions of each data set (default: %(default)s)",
    )
    parser.add_argument("--work", type=Path, default=OUTPUT / "reproduce", metavar="DIR")
    parser.add_argument("--skip-torch", action="store_true", help="leave PyTorch's scores out")
    options = parser.parse_args()
    work = Work(options.work, options.limit)
    main_bundle = work.bundle("atp", work.checkpoint())
    scenes = work.data(SCENES)
    runs = {
        "dense": work.run("dense", main_bundle, scenes, "--select", "keep_all"),
        "ATP 144": work.run("atp-144", main_bundle, scenes),
    }
    names = ["dense", "atp-144"]
    names += _at_other_budget(work, runs, scenes)
    names += _baselines(work, runs, scenes, main_bundle)
    names += _ablations(work, runs, scenes)
    elsewhere = {
        "other style, dense": work.run("other-dense", main_bundle, work.data(OTHER), *_DENSE),
        "other style, ATP": work.run("other-atp", main_bundle, work.data(OTHER)),
        "easy-VQA, dense": work.run("easy-dense", main_bundle, work.data(EASY), *_DENSE),
        "easy-VQA, ATP": work.run("easy-atp", main_bundle, work.data(EASY)),
    }
    in_torch = {}
    if not options.skip_torch:
        from tests.benchmarks.reproduce.torch_scores import torch_scores  # noqa: PLC0415

        for name, prune in (("dense", False), ("ATP 144", True)):
            scores = torch_scores(work.checkpoint(), work.asked("dense", scenes), prune=prune)
            in_torch[name] = scores.answer_accuracy
    floors = {SCENES: work.baseline(SCENES), EASY: work.baseline(EASY)}
    text, all_met = write_report(
        dict(zip(runs, work.compared(names), strict=True)), runs, elsewhere, floors, in_torch
    )
    report = options.work / "report.md"
    report.write_text(text, encoding="utf-8")
    print(text)
    print(f"written to {report}")
    return 0 if all_met else 1


_DENSE = ("--select", "keep_all")


def _at_other_budget(work: Work, runs: dict[str, Any], scenes: Path) -> list[str]:
    bundle = work.bundle("atp-88", work.fitted("88", 88))
    runs["ATP 88, thresholds refitted"] = work.run("atp-88", bundle, scenes)
    return ["atp-88"]


def _baselines(work: Work, runs: dict[str, Any], scenes: Path, bundle: Path) -> list[str]:
    kept = ",".join(map(str, kept_at_points(runs["ATP 144"])))
    for rule in ("random", "uniform"):
        runs[rule] = work.run(rule, bundle, scenes, "--select", rule, "--keep", kept)
    once = kept_once(runs["ATP 144"]["tokens"]["mean"]["mean"], layer=2)
    policy = ("--policy", "fastv", "--set", "layer=2", "--set", f"ratio={1 - once / TOKENS:.6f}")
    fastv = work.bundle("fastv", work.checkpoint(), *policy)
    runs["last row, K = 2 (FastV)"] = work.run("fastv", fastv, scenes)
    return ["random", "uniform", "fastv"]


def _ablations(work: Work, runs: dict[str, Any], scenes: Path) -> list[str]:
    fitted = {
        "redundancy only": ("--no-spatial",),
        "self only": ("--redundancy", "self"),
        "cross only": ("--redundancy", "cross"),
    }
    names = []
    for label, words in fitted.items():
        name = label.replace(" ", "-")
        bundle = work.bundle(name, work.fitted(name, 144, *words))
        runs[f"ablation: {label}"] = work.run(name, bundle, scenes)
        names.append(name)
    bundle = work.bundle("spatial-only", work.checkpoint(), "--redundancy", "none")
    runs["ablation: spatial only"] = work.run("spatial-only", bundle, scenes)
    return [*names, "spatial-only"]


if __name__ == "__main__":
    sys.exit(main())
