"""Which heads are kept, against the paper's criterion read sample by sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from atp_models.head_calibration import attention_ratios, by_groups, evidence, kept_heads, main
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_models.reference import LlavaReference

IMAGE, PATCHES = 504, 16


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    write_random_checkpoint(path, tiny_config(kv_heads=2))
    return path


@settings(deadline=None)
@given(st.integers(1, 120), st.floats(0, 3), st.integers(0, 10))
def test_a_head_is_kept_if_more_than_40_of_100_samples_exceed_tau(
    samples: int, tau: float, seed: int
) -> None:
    ratios = np.random.default_rng(seed).gamma(1.0, size=(samples, 4, 3))

    kept = kept_heads(ratios, tau=tau)

    assert kept[:2].all()
    for layer in (2, 3):
        for head in range(3):
            above = sum(float(ratios[n, layer, head]) > tau for n in range(samples))
            assert kept[layer, head] == (above > 0.4 * samples)


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(0, 10))
def test_as_many_heads_are_kept_as_wanted_and_those_with_the_most_evidence(
    keep: int, seed: int
) -> None:
    ratios = np.random.default_rng(seed).gamma(1.0, size=(50, 6, 8))

    kept = kept_heads(ratios, keep=keep)

    assert kept.sum() == max(keep * 6, 16)
    strength = evidence(ratios)[2:]
    kept_ones, dropped = strength[kept[2:]], strength[~kept[2:]]
    assert min(kept_ones, default=np.inf) >= max(dropped, default=-np.inf)


def test_heads_that_share_values_have_one_ratio() -> None:
    ratios = np.arange(8.0).reshape(1, 2, 4)

    assert by_groups(ratios, 2).tolist() == [[[0.5, 2.5], [4.5, 6.5]]]


def test_ratios_are_those_of_the_attention_that_transformers_returns(checkpoint: Path) -> None:
    reference = LlavaReference.load(checkpoint)
    ids = torch.tensor([5, 6, *[IMAGE] * PATCHES, 7, 8, 9])
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    found = attention_ratios(reference, ids, pixels)

    with torch.inference_mode():
        outputs = reference.model(ids[None], pixel_values=pixels, output_attentions=True)
    for layer, weights in enumerate(outputs.attentions):
        for head in range(4):
            rows = weights[0, head, 2 + PATCHES :].double().numpy()
            visual = rows[:, 2 : 2 + PATCHES].sum()
            assert found[layer, head] == pytest.approx(visual / (rows.sum() - visual), rel=1e-6)


def test_the_command_writes_a_file_that_a_structure_can_name(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(coarse).save(tmp_path / "photo.png")
    turns = [
        {"from": "human", "value": "<image>\nWhat is this?"},
        {"from": "gpt", "value": "A photo."},
    ]
    record = {"id": "1", "image": "photo.png", "conversations": turns}
    (tmp_path / "data.json").write_text(json.dumps([record, record]))
    words = [str(checkpoint), str(tmp_path / "data.json"), str(tmp_path / "heads.npy")]

    assert main([*words, "--keep", "3"]) == 0

    kept = np.load(tmp_path / "heads.npy")
    assert (kept.shape, kept.dtype, kept.sum()) == ((4, 4), np.bool_, 12)
    assert "heads kept in each layer: 4 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [(["x.json", "--tau", "1"], r"x\.json"), (["x.npy", "--keep", "9"], "--keep 9")],
)
def test_what_cannot_be_done_is_refused_by_name(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert main([str(checkpoint), "none.json", *words]) == 2
    assert complaint.replace("\\", "") in capsys.readouterr().err
