"""The bar: dense bundles against Transformers, for every kind of LLaVA that is supported.

Logits within 1e-3 and 64 identical greedy tokens in FP32, and a whole parity run besides. The
quick set has each kind in one of the dialects, several kinds to a model; the slow set has each
by itself in both.

A prompt of two images and one of text are drawn at random. Of random weights two logits may be
nearly equal, and then either is right: a prompt is drawn again, by the next seed, while the
reference's best two logits come closer than 1e-4 in any of the 64 steps. That is a hundred
times the largest error seen here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.export.kinds import KINDS

from atp_export.job import ExportOptions, prepare_job
from atp_export.parity import run_parity
from atp_export.parity.recording import BundleRun, keep_all
from atp_export.parity.samples import Prompt, picture
from atp_models.random_configs import tiny_config
from atp_models.reference import LlavaReference
from atp_runtime.bundle import Bundle
from atp_runtime.manifest import read_manifest

STEPS = 64
LOGITS = 1e-3
NEARLY_EQUAL = 1e-4

QUICK: dict[str, tuple[str, ...]] = {
    "portable": ("siglip", "biases", "several feature layers", "linear rope", "tied"),
    "native": ("grouped-query", "tied", "full strategy", "llama3 rope"),
}


def options(kinds: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for kind in kinds for name, value in KINDS[kind].items()}


@pytest.mark.parametrize("dialect", QUICK)
def test_a_dense_bundle_is_transformers_llava(export_bundle: Any, dialect: str) -> None:
    made = export_bundle(tiny_config(**options(QUICK[dialect])), dialect=dialect)

    check_bar(*made)
    check_parity(*made)


@pytest.mark.parametrize("name", ["tiny", "one_segment"])
def test_a_shared_bundle_is_transformers_llava(request: pytest.FixtureRequest, name: str) -> None:
    made = request.getfixturevalue(name)

    check_bar(*made)
    check_parity(*made)


@pytest.mark.parametrize("name", ["half_portable", "half_native"])
def test_fp16_bundles_pass_parity(request: pytest.FixtureRequest, name: str) -> None:
    check_parity(*request.getfixturevalue(name))


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["portable", "native"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_dense_bundle_is_transformers_llava_kind_by_kind(
    export_bundle: Any, kind: str, dialect: str
) -> None:
    made = export_bundle(tiny_config(**KINDS[kind]), dialect=dialect)

    check_bar(*made)
    check_parity(*made)


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_one_segment_is_transformers_llava(export_bundle: Any, dialect: str) -> None:
    made = export_bundle(tiny_config(), dialect=dialect, dense=True)

    check_bar(*made)
    check_parity(*made)


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["portable", "native"])
@pytest.mark.parametrize("kind", KINDS)
def test_fp16_bundles_pass_parity_kind_by_kind(export_bundle: Any, kind: str, dialect: str) -> None:
    config = tiny_config(**KINDS[kind])

    check_parity(*export_bundle(config, dialect=dialect, precision="fp16"))


def check_parity(checkpoint: Path, bundle: Path) -> None:
    manifest = read_manifest(bundle)
    cuts = [stage.layers[1] for stage in manifest.segments[:-1]]
    job = prepare_job(
        checkpoint,
        bundle,
        ExportOptions(
            precision=manifest.precision,
            dialect=manifest.dialect,
            prune_at=cuts or None,
            dense=not cuts,
        ),
    )

    for mode in ("full", "sampled"):
        report = run_parity(
            job.checkpoint, job.plan.spec, job.plan, bundle, mode=mode, report=lambda _: None
        )
        wrong = [m for check in report.checks for m in check.measures if not m.passed]
        assert wrong == []
        assert report.passed


def check_bar(checkpoint: Path, path: Path) -> None:
    bundle = Bundle.open(path)
    reference = LlavaReference.load(checkpoint)
    for images in (2, 0):
        prompt, expected = unambiguous_prompt(reference, bundle, images)
        found = greedy_of_bundle(bundle, prompt)

        assert [int(logits.argmax()) for logits in found] == [
            int(logits.argmax()) for logits in expected
        ]
        assert max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True)) <= LOGITS


def unambiguous_prompt(
    reference: LlavaReference, bundle: Bundle, images: int
) -> tuple[Prompt, list[np.ndarray]]:
    """The first prompt without near-ties, and the reference's logits for its 64 steps."""
    for seed in range(100):
        prompt = random_prompt(bundle, images, seed)
        logits = greedy_of_reference(reference, prompt)
        best = np.sort(np.stack(logits), axis=1)
        if (best[:, -1] - best[:, -2]).min() > NEARLY_EQUAL:
            return prompt, logits
    raise AssertionError("every prompt has near-ties")


def random_prompt(bundle: Bundle, images: int, seed: int) -> Prompt:
    vision = bundle.manifest.vision
    generator = np.random.default_rng(seed)
    parts = [generator.integers(3, 500, size=7)]
    for _ in range(images):
        parts += [np.full(vision.tokens, vision.image_token_id), generator.integers(3, 500, size=5)]
    pixels = [picture(vision.image_size, 2 * seed + number) for number in range(images)]
    photos = np.stack(pixels) if images else None
    return Prompt(f"{images} images", np.concatenate(parts), photos, ())


def greedy_of_reference(reference: LlavaReference, prompt: Prompt) -> list[np.ndarray]:
    run = reference.dense()
    pixels = None if prompt.pixel_values is None else torch.from_numpy(prompt.pixel_values)
    logits = [run.forward(torch.from_numpy(prompt.ids), pixels).logits[0].numpy()]
    for _ in range(STEPS - 1):
        logits.append(run.forward(torch.tensor([int(logits[-1].argmax())])).logits[0].numpy())
    return logits


def greedy_of_bundle(bundle: Bundle, prompt: Prompt) -> list[np.ndarray]:
    with BundleRun(bundle, len(prompt.ids) + STEPS) as run:
        result, _ = run.prefill(run.see(prompt), keep_all)
        logits = [np.array(result.logits)]
        for _ in range(STEPS - 1):
            logits.append(np.array(run.follow(np.array([logits[-1].argmax()]))[0]))
    return logits
