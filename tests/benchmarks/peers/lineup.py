"""Contestants with what each of them loads, and why others are missing."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tests.benchmarks import workbench
from tests.benchmarks.forced_selection import counts_for_average
from tests.benchmarks.peers.contest import Case, Contestant
from tests.benchmarks.peers.contestants import OUR_COMMAND, OURS, PEERS, Peer, peer_environment
from tests.benchmarks.peers.made_once import bytes_of, made_once
from tests.benchmarks.peers.text_checkpoint import text_checkpoint
from tests.benchmarks.quantised import quantised_bundle
from tests.benchmarks.workbench import WORK, checkpoint

from atp_models.architecture import read_architecture
from atp_models.checkpoint import Checkpoint
from atp_runtime.bundle import Bundle
from atp_runtime.errors import AtpError

PRUNED = f"{OURS}, pruned"
_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
_FIRST_ID = 100  # ids before it may be special tokens
_SLACK = 1.3


@dataclass(frozen=True)
class Missing:
    """What could not be measured.

    Attributes:
        name: A contestant's.
        precision: One of `PRECISIONS`.
        what: "decoder", "vision tower", or which case.
        reason: Why.
    """

    name: str
    precision: str
    what: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What is asked of all.

    Attributes:
        shape: Of the checkpoint.
        precisions: Some of `PRECISIONS`.
        kept: Shares of an image's visual tokens that are left.
        texts: Numbers of text tokens around them.
        threads: To run on.
        peers: Names of those to compare with.
    """

    shape: str
    precisions: tuple[str, ...]
    kept: tuple[float, ...]
    texts: tuple[int, ...]
    threads: int
    peers: tuple[str, ...]


class Lineup:
    """Makes what contestants load, once, in `bench-output/work`.

    Args:
        plan: What is asked.
        told: Told what is being made.

    Attributes:
        decoder: The checkpoint's decoder by itself.
        missing: Filled while contestants are made.
    """

    def __init__(self, plan: Plan, told: Callable[[str], None]) -> None:
        self._plan, self._told = plan, told
        self._work = WORK / f"peers-{plan.shape}"
        source = checkpoint(plan.shape)
        self.decoder = text_checkpoint(source, self._work / "decoder")
        self._visual = read_architecture(Checkpoint.open(source)).vision.tokens
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        self._vocabulary = min(config["image_token_index"], config["text_config"]["vocab_size"])
        stored = config["dtype"] if config.get("dtype") else "float16"
        self._weights = bytes_of(self.decoder) // (4 if stored == "float32" else 2)
        self.missing: list[Missing] = []

    def ids(self, count: int) -> tuple[int, ...]:
        """Random tokens of text, the same whenever asked for."""
        random = np.random.default_rng(0)
        return tuple(random.integers(_FIRST_ID, self._vocabulary, count).tolist())

    def contestants(self) -> list[Contestant]:
        """Those that can be run."""
        return [
            made
            for precision in self._plan.precisions
            for made in (*self._ours(precision), *self._peers(precision))
        ]

    def reference(self) -> Contestant:
        """Transformers in FP32, without cases: what all must answer."""
        return self._contestant(PEERS[0], "fp32", self.decoder, ())

    def _ours(self, precision: str) -> Iterator[Contestant]:
        for name, word in ((OURS, "dense"), (PRUNED, "pruned")):
            self._told(f"{name}: bundle in {precision}")
            try:
                path = self.bundle(word, precision)
                cases = self._cases() if word == "dense" else self._pruned(path, precision)
            except (AtpError, subprocess.CalledProcessError) as error:
                self._miss(name, precision, str(error))
                continue
            if cases and self._has_memory(name, precision):
                variables = peer_environment(ours=True, threads=self._plan.threads)
                size = _decoder_bytes(path)
                yield Contestant(name, precision, OUR_COMMAND, variables, str(path), size, cases)

    def bundle(self, word: str, precision: str) -> Path:
        """This project's, `word` being "dense" or "pruned"."""
        dense = ("--dense",) if word == "dense" else ()
        if precision == "int8":
            return quantised_bundle(self.bundle(word, "fp32"), "int8")
        name = word if precision == "fp32" else f"{word}-{precision}"
        return workbench.bundle(self._plan.shape, name, "--precision", precision, *dense)

    def _peers(self, precision: str) -> Iterator[Contestant]:
        for peer in PEERS:
            if peer.name not in self._plan.peers:
                self._miss(peer.name, precision, "left out with --peers")
                continue
            if absent := peer.reason(precision):
                self._miss(peer.name, precision, absent)
                continue
            try:
                artefact = self._artefact(peer, precision)
            except (AtpError, ValueError, OSError) as error:
                self._miss(peer.name, precision, f"its model could not be made: {error}")
                continue
            if self._has_memory(peer.name, precision):
                yield self._contestant(peer, precision, artefact, self._cases())

    def _artefact(self, peer: Peer, precision: str) -> Path:
        make = peer.make
        if make is None:
            return self.decoder
        path = self._work / f"{peer.name}-{precision}{peer.suffix}"
        if not path.exists():
            self._told(f"{peer.name}: converting to {precision}")
            needed = self._weights * _BYTES[precision] * _SLACK
            if shutil.disk_usage(self._work).free < needed:
                raise OSError(f"{needed / 2**30:.1f} GiB of disk are needed in {self._work}")
        return made_once(path, lambda target: make(self.decoder, target, precision))

    def _contestant(
        self, peer: Peer, precision: str, artefact: Path, cases: tuple[Case, ...]
    ) -> Contestant:
        variables = peer_environment(ours=False, threads=self._plan.threads)
        size = bytes_of(artefact)
        return Contestant(peer.name, precision, peer.command, variables, str(artefact), size, cases)

    def _cases(self) -> tuple[Case, ...]:
        kept = [round(share * self._visual) for share in self._plan.kept]
        counts = sorted(itertools.product(kept, self._plan.texts), key=sum)
        return tuple(Case(kept, text, self.ids(kept + text)) for kept, text in counts)

    def _pruned(self, path: Path, precision: str) -> tuple[Case, ...]:
        """Prompts with a whole image, pruned to the averages that the others get."""
        manifest = Bundle.open(path).manifest
        spans = [stage.layers[1] - stage.layers[0] for stage in manifest.segments]
        visual, cases = self._visual, []
        for case in self._cases():
            if case.visual == visual:
                continue
            try:
                keep = counts_for_average(spans, visual, case.visual)
            except ValueError as error:
                what = f"{case.visual} of {visual} visual, {case.text} text"
                self._miss(PRUNED, precision, str(error), what)
                continue
            cases.append(Case(case.visual, case.text, self.ids(visual + case.text), keep))
        return tuple(cases)

    def _has_memory(self, name: str, precision: str) -> bool:
        needed, free = self._weights * _BYTES[precision] * _SLACK, _free_memory()
        if free and needed > free:
            why = f"needs about {needed / 2**30:.0f} GiB of memory, {free / 2**30:.0f} are free"
            self._miss(name, precision, why)
            return False
        return True

    def _miss(self, name: str, precision: str, reason: str, what: str = "decoder") -> None:
        self.missing.append(Missing(name, precision, what, " ".join(reason.split())))


def _decoder_bytes(path: Path) -> int:
    """Of what a decoder needs: graphs in one dialect, their weights and the embeddings."""
    manifest = Bundle.open(path).manifest
    stages = [*manifest.segments, *manifest.heads]
    names = {name for stage in stages for name in (stage.graph, *stage.data)}
    return sum(manifest.files[name].bytes for name in {*names, manifest.embedding.file})


def _free_memory() -> int:
    """Bytes that programs can have; 0 where the system does not say."""
    file = Path("/proc/meminfo")
    lines = file.read_text(encoding="ascii").splitlines() if file.is_file() else []
    return next((int(it.split()[1]) * 1024 for it in lines if it.startswith("MemAvailable")), 0)
