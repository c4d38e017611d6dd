"""What min-max calibration sees, held against PyTorch hooks on the same input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.calibration.one_dialect import one_dialect
from transformers import LlavaForConditionalGeneration

from atp_calibration.quantisation.ranges import RangeBackend
from atp_runtime.backends import open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.generation import GenerationOptions
from atp_runtime.session import Session
from atp_runtime.vision import VisionEncoder

SHORT = GenerationOptions(max_new_tokens=2)


@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_the_tower_is_seen_as_pytorch_sees_it(
    two_dialects: Path, tiny_checkpoint: Path, photos: list[Path], dialect: str
) -> None:
    backend = RangeBackend()
    encoder = VisionEncoder(one_dialect(two_dialects, dialect), backend)
    shown = [encoder.read(photo) for photo in photos]
    for photo in shown:
        encoder.encode(photo)

    model = LlavaForConditionalGeneration.from_pretrained(tiny_checkpoint)
    largest: dict[str, float] = {}

    def watch(name: str) -> None:
        def seen(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
            largest[name] = max(largest.get(name, 0.0), float(inputs[0].abs().max()))

        model.get_submodule(name).register_forward_pre_hook(seen)

    ranges = backend.ranges["vision"]
    for name in ranges:
        watch(name.removesuffix(".weight"))
    pixels = torch.from_numpy(np.stack([photo.pixel_values for photo in shown]))
    with torch.no_grad():
        model.model.get_image_features(pixels)
    expected = {f"{name}.weight": value for name, value in largest.items()}
    assert ranges == pytest.approx(expected, rel=1e-4)


def test_both_dialects_see_the_same(two_dialects: Path, photos: list[Path]) -> None:
    found = []
    for dialect in ("portable", "native"):
        backend = RangeBackend()
        with Session(one_dialect(two_dialects, dialect), backend) as session:
            session.ask("What is this?", images=photos[:1], options=SHORT)
        found.append(backend.ranges)
    portable, native = found
    assert portable.keys() == native.keys() == {"vision", "segment_0", "segment_1"}
    for stage in portable:
        assert portable[stage] == pytest.approx(native[stage], rel=1e-3)


def test_watching_changes_no_answer(two_dialects: Path, photos: list[Path]) -> None:
    bundle = Bundle.open(two_dialects)
    texts = []
    for backend in (open_backend(), RangeBackend()):
        with Session(bundle, backend) as session:
            answer = session.ask("And this?", photos[:1], GenerationOptions(max_new_tokens=8))
            texts.append(answer.text)
    assert texts[0] == texts[1]


def test_more_samples_only_widen_the_ranges(two_dialects: Path, photos: list[Path]) -> None:
    backend = RangeBackend()
    with Session(Bundle.open(two_dialects), backend) as session:
        session.ask("Black or white?", [Image.new("RGB", (32, 32))], SHORT)
        before = {stage: dict(seen) for stage, seen in backend.ranges.items()}
        session.ask("And this?", photos[:1], SHORT)
    pairs = [(before[s][name], after) for s in before for name, after in backend.ranges[s].items()]
    assert all(old <= new for old, new in pairs)
    assert any(old < new for old, new in pairs)
