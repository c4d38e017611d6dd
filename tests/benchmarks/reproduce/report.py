"""The report of the demo's scores, and which promises they meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SURE_KINDS = ("what", "exists", "colour")
_ABOUT = (
    "Rebuilt by `just reproduce`. {asked} questions about held-out scenes; FP32 bundles, CPU "
    "runtime. Tokens are visual tokens averaged over all decoder layers, of 576."
)


@dataclass(frozen=True)
class Promise:
    """A bar and what was found.

    Attributes:
        text: The bar.
        found: The numbers.
        met: Whether they meet it.
    """

    text: str
    found: str
    met: bool


def write_report(
    compared: Mapping[str, Any],
    runs: Mapping[str, Any],
    elsewhere: Mapping[str, Any],
    floors: Mapping[str, Any],
    in_torch: Mapping[str, float],
) -> tuple[str, bool]:
    """The report as Markdown, and whether every promise is met.

    Args:
        compared: Of `atp-eval compare`, by label, the dense run first.
        runs: Reports of `atp-eval` on the held-out scenes, by label.
        elsewhere: Likewise on other data.
        floors: Question-only baselines, by data set.
        in_torch: Accuracy of the PyTorch model, by label of the run it belongs to.
    """
    promises = _promises(compared, runs, elsewhere, floors, in_torch)
    asked = runs["dense"]["asked"]
    parts = [
        "# Scores of the demo checkpoint",
        _ABOUT.format(asked=asked),
        "## Promises",
        _table(
            ["promise", "found", ""],
            [[it.text, it.found, "met" if it.met else "**not met**"] for it in promises],
        ),
        "## Runs on the same questions",
        _runs(compared),
        "## By kind",
        _kinds(compared, floors["scenes-test"]),
        "## Other data",
        _elsewhere(elsewhere),
    ]
    if in_torch:
        rows = [[name, _percent(runs[name]), f"{100 * v:.1f}"] for name, v in in_torch.items()]
        parts += ["## The same questions in PyTorch", _table(["run", "bundle", "PyTorch"], rows)]
    return "\n\n".join(parts) + "\n", all(it.met for it in promises)


def _promises(
    compared: Mapping[str, Any],
    runs: Mapping[str, Any],
    elsewhere: Mapping[str, Any],
    floors: Mapping[str, Any],
    in_torch: Mapping[str, float],
) -> list[Promise]:
    dense, floor = compared["dense"]["kinds"], floors["scenes-test"]["kinds"]
    overall = _score(runs["dense"])
    above = {kind: dense[kind] - floor[kind]["accuracy"] for kind in dense}
    least = min(above, key=lambda kind: above[kind])
    promises = [
        Promise(
            "dense: 90 % on what, exists and colour",
            ", ".join(f"{kind} {100 * dense[kind]:.1f}" for kind in SURE_KINDS),
            min(dense[kind] for kind in SURE_KINDS) >= 0.9,
        ),
        Promise("dense: 80 % over all kinds", f"{100 * overall:.1f}", overall >= 0.8),
        Promise(
            "dense: every kind 30 points above its question-only baseline",
            f"least: {least}, {100 * above[least]:+.1f}",
            above[least] >= 0.3,
        ),
    ]
    easy = _score(elsewhere["easy-VQA, dense"])
    promises.append(Promise("easy-VQA: 95 %", f"{100 * easy:.1f}", easy >= 0.95))
    for label, tokens, most in (("ATP 144", 144, 1.9), ("ATP 88, thresholds refitted", 88, 5.4)):
        loss, kept = 100 * (overall - _score(runs[label])), compared[label]["mean_tokens"]
        found = f"{loss:+.1f} at {kept:.0f} tokens"
        met = loss <= most and kept <= tokens
        promises.append(Promise(f"{label}: at most {most} points below dense", found, met))
    promises.append(_adaptive(runs["ATP 144"]["tokens"]))
    atp = _score(runs["ATP 144"])
    for rule in ("random", "uniform", "last row, K = 2 (FastV)"):
        gain = 100 * (atp - _score(runs[rule]))
        promises.append(Promise(f"ATP beats {rule} at equal tokens", f"{gain:+.1f}", gain > 0))
    for label, accuracy in in_torch.items():
        off = 100 * abs(accuracy - _score(runs[label]))
        text = f"{label}: bundle and PyTorch model equal to 0.1 point"
        promises.append(Promise(text, f"{off:.2f} apart", off <= 0.1))
    return promises


def _adaptive(tokens: Mapping[str, Any]) -> Promise:
    by_field = {it["field"]: it["rho"] for it in tokens["correlations"]}
    rho, differing = by_field.get("objects"), tokens["adaptivity"]
    found = (
        "-"
        if rho is None or differing is None
        else (f"{rho:.2f}; {differing['differing']} of {differing['images']} images differ")
    )
    met = rho is not None and rho >= 0.5 and bool(differing and differing["differing"])
    return Promise("kept tokens: Spearman 0.5 with pictures, change with the question", found, met)


def _runs(compared: Mapping[str, Any]) -> str:
    rows = []
    for label, run in compared.items():
        tokens, score = f"{run['mean_tokens']:.0f}", f"{100 * run['score']['mean']:.1f}"
        rows.append([label, tokens, score, _change(run["difference"])])
    return _table(["run", "tokens", "exact match", "against dense (95 %)"], rows)


def _change(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    mean, low, high = (100 * difference["score"][name] for name in ("mean", "low", "high"))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def _kinds(compared: Mapping[str, Any], floor: Mapping[str, Any]) -> str:
    kinds = sorted(compared["dense"]["kinds"])
    rows = [["question only", *(f"{100 * floor['kinds'][kind]['accuracy']:.1f}" for kind in kinds)]]
    for label, run in compared.items():
        rows.append([label, *(f"{100 * run['kinds'][kind]:.1f}" for kind in kinds)])
    return _table(["run", *kinds], rows)


def _elsewhere(elsewhere: Mapping[str, Any]) -> str:
    rows = []
    for label, run in elsewhere.items():
        kinds = ", ".join(
            f"{it['kind']} {100 * it['score']['mean']:.1f}" for it in run["accuracy"][1:]
        )
        tokens = f"{run['tokens']['mean']['mean']:.0f}"
        rows.append([label, str(run["asked"]), tokens, _percent(run), kinds])
    return _table(["run", "questions", "tokens", "exact match", "by kind"], rows)


def _score(run: Mapping[str, Any]) -> float:
    return float(run["accuracy"][0]["score"]["mean"])


def _percent(run: Mapping[str, Any]) -> str:
    return f"{100 * _score(run):.1f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
