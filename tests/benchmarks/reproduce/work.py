"""Checkpoints, bundles, data and runs of the report; each is made once, and resumes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
DEPTH, TOKENS = 30, 576


@dataclass(frozen=True)
class Work:
    """Makes what the report is about.

    Attributes:
        directory: Where it goes.
        limit: Questions of each data set.
    """

    directory: Path
    limit: int

    def checkpoint(self) -> Path:
        """The trained demo."""
        path = self.directory / "checkpoint"
        self._call(sys.executable, "-m", "atp_models.demo", path, "--quiet")
        return path

    def data(self, name: str) -> Path:
        """A data set of the demo."""
        path = self.directory / "data" / name
        self._call(sys.executable, "-m", "atp_models.demo.data", name, path, "--quiet")
        return path / f"{name}.json"

    def baseline(self, name: str) -> dict[str, Any]:
        """What the questions of a data set give away."""
        path = self.data(name).with_name("baseline.json")
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def fitted(self, name: str, target: int, *options: str) -> Path:
        """The demo with thresholds fitted to other tokens or to less of the scores."""
        path = self.directory / f"checkpoint-{name}"
        if not path.is_dir():
            words = ["--fit-thresholds", "--samples", "96", "--validation", "0"]
            words += ["--target-tokens", str(target), *options]
            self._call(
                BIN / "atp-train", self.checkpoint(), self.data("scenes-train"), path, *words
            )
        return path

    def bundle(self, name: str, checkpoint: Path, *options: str) -> Path:
        """An FP32 bundle; its parity with PyTorch is checked on the way."""
        path = self.directory / f"bundle-{name}"
        if not (path / "manifest.json").is_file():
            self._call(BIN / "atp-export", checkpoint, path, "--precision", "fp32", *options)
        return path

    def run(self, name: str, bundle: Path, data: Path, *options: str) -> dict[str, Any]:
        """The report of `atp-eval`; what it has answered already is not asked again."""
        path = self.directory / "runs" / name
        words = ["--output", path, "--limit", str(self.limit), *options]
        self._call(BIN / "atp-eval", bundle, data, *words)
        found: dict[str, Any] = json.loads((path / "report.json").read_text(encoding="utf-8"))
        return found

    def asked(self, name: str, data: Path) -> Path:
        """The records of a data set that a run was asked."""
        lines = (self.directory / "runs" / name / "answers.jsonl").read_text(encoding="utf-8")
        asked = {json.loads(line)["id"] for line in lines.splitlines()}
        records = json.loads(data.read_text(encoding="utf-8"))
        path = data.with_name("asked.json")
        chosen = [record for record in records if record["id"] in asked]
        path.write_text(json.dumps(chosen), encoding="utf-8")
        return path

    def compared(self, names: list[str]) -> list[dict[str, Any]]:
        """Runs on the same questions, each against the first."""
        paths = [self.directory / "runs" / name for name in names]
        command = [str(BIN / "atp-eval"), "compare", "--json", *map(str, paths)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        runs: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
        return runs

    @staticmethod
    def _call(*words: str | Path) -> None:
        subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)


def kept_at_points(report: dict[str, Any]) -> list[int]:
    """Visual tokens behind each pruning point, on average."""
    return [round(point["kept"]["mean"]) for point in report["tokens"]["points"]]


def kept_once(mean_tokens: float, layer: int) -> int:
    """What one pruning point before `layer` must keep for an all-layer average."""
    return max(1, round((mean_tokens * DEPTH - TOKENS * layer) / (DEPTH - layer)))
