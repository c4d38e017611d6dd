"""Bundles with policies before the decoder: what is computed, answered and shown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.export.exporting import checkpoints
from tests.export.towers import INSIDE, SETTINGS, TOWERS, TRAINED
from transformers import LlavaForConditionalGeneration

from atp_export.cli import main as atp_export
from atp_export.job import ExportOptions, prepare_job
from atp_export.parity import run_parity
from atp_export.vision_policies import VISION_POLICIES
from atp_runtime.generation import GenerationOptions
from atp_runtime.manifest import read_manifest
from atp_runtime.pruning_view import point_views
from atp_runtime.session import Session

PATCHES, HEADS = 16, 2  # of the tiny towers


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint with one of `TOWERS`; shared, so no test may change it."""
    return checkpoints(tmp_path_factory, TOWERS)


@pytest.fixture(scope="session")
def bundle(tower: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bundle by a policy, checked against PyTorch; each is made once."""
    made: dict[tuple[str, ...], Path] = {}

    def export(name: str, policy: str, *words: str, parity: str = "full") -> Path:
        key = (name, policy, *words)
        if key not in made:
            out = tmp_path_factory.mktemp("reduced") / "bundle"
            settings = [word for setting in words for word in ("--set", setting)]
            options = ["--precision", "fp32", "--dialect", "portable", "--parity", parity]
            command = [str(tower(name)), str(out), *options, "--policy", policy, *settings]
            assert atp_export([*command, "--quiet"]) == 0
            made[key] = out
        return made[key]

    return export


CASES = [
    *(("clip", policy, *SETTINGS[policy]) for policy in VISION_POLICIES if policy not in TRAINED),
    *(("dinov2", policy, *SETTINGS[policy]) for policy in ("fastervlm", "prumerge")),
    ("two layers", "visionzip", "keep=6", "contextual=2", "layer=0"),
    ("siglip", "divprune", "keep=5"),
    ("full", "divprune", "keep=5"),
    ("clip", "visionzip+fastv", "visionzip.keep=8", "visionzip.contextual=3", "fastv.layer=1"),
    ("clip", "prumerge_plus+atp"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_bundles_compute_what_the_pruned_checkpoint_does(
    bundle: Any, case: tuple[str, ...]
) -> None:
    report = json.loads((bundle(*case) / "reports" / "parity.json").read_text())
    assert report["passed"] is True
    checks = {check["name"] for check in report["checks"]}
    cut = not case[1].startswith(("divprune", *INSIDE))
    assert checks >= {"vision", "reduced", "dense", *(["projector"] if cut else [])}
    assert ("pruned" in checks) == ("+" in case[1])


@pytest.mark.slow
def test_half_precision_and_both_dialects_are_within_their_bounds(
    tower: Callable[[str], Path], tmp_path: Path
) -> None:
    command = [str(tower("clip")), str(tmp_path / "out"), "--policy", "visionzip", "--quiet"]
    assert atp_export([*command, "--set", "keep=6", "--set", "contextual=2"]) == 0


@pytest.mark.slow
def test_a_sampled_comparison_sees_the_tower_and_the_projector(
    tower: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    options = ["--precision", "fp32", "--dialect", "portable", "--parity", "sampled", "--quiet"]
    command = [str(tower("clip")), str(out), *options, "--policy", "fastervlm"]
    assert atp_export(command) == 0
    report = json.loads((out / "reports" / "parity.json").read_text())
    tensors = {it["tensor"] for check in report["checks"] for it in check["measures"]}
    assert tensors >= {"scores.class", "patch_features", "image_features"}


@pytest.mark.slow
def test_parity_sees_a_projector_that_is_off(
    bundle: Any, tower: Callable[[str], Path], tmp_path: Path
) -> None:
    path = bundle("clip", "visionzip", "keep=6", "contextual=2", parity="off")
    own = Path(shutil.copytree(path, tmp_path / "own"))
    weights = np.memmap(own / "onnx" / "projector.data", dtype=np.float32, mode="r+")
    weights *= 1.01
    weights.flush()
    settings = {"keep": 6, "contextual": 2}
    options = ExportOptions("fp32", "portable", policy="visionzip", settings=settings)
    job = prepare_job(tower("clip"), own, options)
    spec = job.plan.spec
    report = run_parity(job.checkpoint, spec, job.plan, own, mode="full", report=[].append)
    failed = {check.name for check in report.checks if not check.passed}
    assert failed == {"projector", "reduced", "dense"}
    assert all(check.passed for check in report.checks if check.detail == "text only")


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def photo(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((48, 64), Image.Resampling.BICUBIC)


class Reading:
    """PruMerge+ in plain NumPy on what Transformers' tower computes, then its decoder."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = LlavaForConditionalGeneration.from_pretrained(
            checkpoint, attn_implementation="eager"
        ).eval()

    def tokens(self, pixels: np.ndarray) -> torch.Tensor:
        """Image tokens [kept, hidden]."""
        tower, wanted = self.model.model.vision_tower, 2
        layer = tower.encoder.layers[wanted]
        with torch.no_grad():
            states = tower(torch.from_numpy(pixels)[None], output_hidden_states=True).hidden_states
            entering = layer.layer_norm1(states[wanted])[0]
            query, keys = (
                it(entering).double().numpy()
                for it in (layer.self_attn.q_proj, layer.self_attn.k_proj)
            )
        width = keys.shape[1] // HEADS
        heads = [slice(head * width, (head + 1) * width) for head in range(HEADS)]
        rows = [softmax(keys[:, it] @ query[0, it] / width**0.5) for it in heads]
        scores, features = np.mean(rows, axis=0)[1:], states[wanted + 1][0, 1:].double().numpy()
        low, high = np.percentile(scores, [25, 75])
        kept = {at for at in range(PATCHES) if scores[at] > high + 1.5 * (high - low)}
        kept = kept or {int(scores.argmax())}
        kept |= set(range(0, PATCHES, max(1, PATCHES // (3 * len(kept)))))
        unit = keys[1:] / np.linalg.norm(keys[1:], axis=1, keepdims=True)
        merged = []
        for at in sorted(kept):
            order = sorted(set(range(PATCHES)) - {at}, key=lambda it, at=at: -(unit[it] @ unit[at]))
            like = [at, *order[:4]]
            merged.append(scores[like] @ features[like] / scores[like].sum())
        with torch.no_grad():
            return self.model.model.multi_modal_projector(torch.tensor(np.array(merged)).float())

    def answer(self, ids: list[int], images: list[torch.Tensor], count: int) -> list[int]:
        """The next tokens; placeholders stand for the images' tokens."""
        embedded = self.model.get_input_embeddings()(torch.tensor(ids)).detach()
        embedded[torch.tensor(ids) == self.model.config.image_token_id] = torch.cat(images)
        found: list[int] = []
        with torch.no_grad():
            for _ in range(count):
                logits = self.model(inputs_embeds=embedded[None]).logits[0, -1]
                found.append(int(logits.argmax()))
                last = self.model.get_input_embeddings()(torch.tensor(found[-1:]))
                embedded = torch.cat([embedded, last])
        return found


def test_answers_about_two_photos_are_those_of_an_independent_reading(
    bundle: Any, tower: Callable[[str], Path]
) -> None:
    words = ("neighbours=4",)
    path = bundle("clip", "prumerge_plus", *words, parity="off")
    reading = Reading(tower("clip"))
    with Session.open(path, threads=1) as session:
        model = session.model
        shown = [model.vision.read(photo(seed)) for seed in range(6)]
        counts = [len(model.vision.encode(it)) for it in shown]
        first = 0
        second = next(at for at in range(6) if counts[at] != counts[first])
        pair = [shown[first], shown[second]]
        answer = session.ask("What?", pair, GenerationOptions(12, ignore_end=True))
        tokens = [reading.tokens(it.pixel_values) for it in pair]
        assert [len(it) for it in tokens] == [counts[first], counts[second]]
        draft = model.writer.draft(session._current._transcript.messages[:-1])
        ids = model.writer.ids(draft, [len(it) for it in tokens])
        assert list(answer.ids) == reading.answer(ids, tokens, 12)
        assert answer.statistics.visual_tokens == sum(counts[at] for at in (first, second))
        places = [np.flatnonzero(answer.chunk.image == number) for number in (0, 1)]
        assert [len(it) for it in places] == [len(it) for it in tokens]


def test_a_second_turn_goes_on_behind_an_image_with_fewer_tokens(bundle: Any) -> None:
    path = bundle("clip", "fastervlm", "keep=3", parity="off")
    options = GenerationOptions(4, ignore_end=True)
    with Session.open(path, threads=1) as session:
        conversation = session.conversation()
        conversation.ask("What?", [photo(0)], options)
        second = conversation.ask("And this?", [photo(1)], options)
        fresh = session.conversation()
        fresh.ask("What?", [photo(0)], options)
    assert second.statistics.visual_tokens == 3
    assert second.statistics.reused_tokens > 3
    assert set(second.chunk.image.tolist()) == {-1, 1}


def test_pictures_show_what_reaches_the_decoder(bundle: Any) -> None:
    words = ("keep=6", "contextual=2")
    path = bundle("clip", "visionzip", *words, parity="off")
    vision = read_manifest(path).vision
    with Session.open(path, threads=1) as session:
        answer = session.ask("What?", [photo(0)], GenerationOptions(1))
    (view,) = point_views(answer, 0, vision)
    assert (view.layer, int(view.kept.sum()), view.merged) == (None, 4, 2)
    assert view.caption == "decoder: 4 of 16 kept (25 %), 2 merged"
