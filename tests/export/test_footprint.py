from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atp_export.footprint import ORIN_MODULES, Footprint, predict_footprint
from atp_export.plan import make_plan
from atp_models.architecture import read_architecture
from atp_models.checkpoint import Checkpoint
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_runtime.latency.device import read_device
from atp_runtime.manifest import read_manifest


def predicted(checkpoint: Path, precision: str, cut_at: tuple[int, ...] = ()) -> Footprint:
    spec = read_architecture(Checkpoint.open(checkpoint))
    plan = make_plan(spec, precision=precision, dialect="portable", cut_at=cut_at)
    return predict_footprint(plan)


def test_the_disk_prediction_is_what_an_export_writes(tiny: Any) -> None:
    manifest = read_manifest(tiny.bundle)
    footprint = predicted(tiny.checkpoint, "fp32", (1, 2, 3))
    by_name = {stage.name: stage for stage in manifest.stages}
    for stage in footprint.stages:
        (file,) = by_name[stage.name].data
        written = manifest.files[file].bytes
        # Weights begin on pages: at most one page more for each of them. The tower's layers
        # above the last one that is used are predicted and not written.
        if stage.name != "vision":
            assert stage.weight_bytes <= written < stage.weight_bytes + 12 * 4096
    embedding = manifest.files[manifest.embedding.file].bytes
    assert 0 < embedding - footprint.embedding_bytes <= 128


def test_fp16_takes_half_of_fp32(checkpoint: Path) -> None:
    whole, half = predicted(checkpoint, "fp32"), predicted(checkpoint, "fp16")
    assert half.disk_bytes * 2 == whole.disk_bytes
    assert half.cache_bytes_per_token * 2 == whole.cache_bytes_per_token


def test_caches_are_keys_and_values_of_all_layers(checkpoint: Path) -> None:
    # 4 layers of 2 heads of 16, in 2 bytes, twice
    assert predicted(checkpoint, "fp16").cache_bytes_per_token == 2 * 4 * 2 * 16 * 2


def test_cutting_moves_bytes_between_stages_and_adds_none(checkpoint: Path) -> None:
    one, four = predicted(checkpoint, "fp16"), predicted(checkpoint, "fp16", (1, 2, 3))
    assert one.disk_bytes == four.disk_bytes
    assert [stage.layers for stage in four.stages[1:-1]] == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_a_tied_head_is_counted_once(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "tied", tiny_config(tied=True))
    write_random_checkpoint(tmp_path / "untied", tiny_config())
    tied, untied = (predicted(tmp_path / name, "fp32") for name in ("tied", "untied"))
    assert untied.disk_bytes - tied.disk_bytes == tied.embedding_bytes == 512 * 64 * 4


def test_every_orin_module_gets_a_verdict(checkpoint: Path) -> None:
    fits = predicted(checkpoint, "fp16").fits
    assert [fit.module for fit in fits] == [read_device(name).name for name in ORIN_MODULES]
    assert all(fit.builds and fit.runs for fit in fits)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_7b_runs_where_its_weights_fit(seven_billion: Path, precision: str) -> None:
    footprint = predicted(seven_billion, precision, (4, 14, 24))
    weights = {"fp16": 14.1e9, "fp32": 28.2e9}[precision]
    assert footprint.disk_bytes == pytest.approx(weights, rel=0.02)
    runs = {fit.module: fit.runs for fit in footprint.fits}
    assert not runs["Jetson Orin Nano 8GB"]
    assert runs["Jetson AGX Orin 64GB"]
    assert footprint.cache_bytes_per_token == {"fp16": 512, "fp32": 1024}[precision] * 1024


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA-1.5-7B's config over weights that are holes in a file."""
    from atp_models.random_configs import named_config  # noqa: PLC0415

    directory = tmp_path_factory.mktemp("7b")
    named_config("7b").save_pretrained(directory)
    _write_hollow(directory)
    return directory


def _write_hollow(directory: Path) -> None:
    import json  # noqa: PLC0415
    import math  # noqa: PLC0415

    import torch  # noqa: PLC0415
    from transformers import LlavaConfig, LlavaForConditionalGeneration  # noqa: PLC0415

    config = LlavaConfig.from_pretrained(directory)
    with torch.device("meta"):
        state = LlavaForConditionalGeneration(config).state_dict()
    entries, end = {}, 0
    for name, tensor in state.items():
        size = 2 * math.prod(tensor.shape)
        offsets = [end, end + size]
        entries[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": offsets}
        end += size
    header = json.dumps(entries).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
