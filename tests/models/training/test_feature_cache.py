"""Features kept on disk: the tower's, computed once, resumed, told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models.training.conftest import MakeCheckpoint, Notes, load, write_conversations

from atp_models.training import feature_cache
from atp_models.training.feature_cache import CachedFeatures, fill_cache
from atp_models.training.loading import load_processor
from atp_models.training.packing import PatchGrid
from atp_models.training.pictures import PixelValues
from atp_models.training.records import read_records
from atp_models.training.soft_decoder import SoftDecoder
from atp_runtime.errors import InputError, MachineError


class Tower:
    """A decoder, its pixels, and the images of a dataset."""

    def __init__(self, checkpoint: Path, grid: PatchGrid, directory: Path) -> None:
        llava = load(checkpoint).eval()
        self.decoder = SoftDecoder(llava, None, grid)
        self.pixels = PixelValues(load_processor(checkpoint, llava).image_processor)
        records = read_records(write_conversations(directory / "photos", pictures=5))
        self.files = list(dict.fromkeys(image for it in records for image in it.images))
        self.cache = directory / "cache"

    def fill(self, notes: Notes | None = None, files: list[Path] | None = None) -> CachedFeatures:
        return fill_cache(
            self.cache,
            files or self.files,
            pixels=self.pixels,
            decoder=self.decoder,
            progress=notes or Notes(),
        )

    def computed(self, files: list[Path]) -> torch.Tensor:
        with torch.no_grad():
            return self.decoder.tower_features(self.pixels.stack(files))


@pytest.fixture
def tower(make_checkpoint: MakeCheckpoint, grid: PatchGrid, tmp_path: Path) -> Tower:
    return Tower(make_checkpoint(), grid, tmp_path)


def arrays(tower: Tower) -> list[Path]:
    return [it for it in sorted(tower.cache.glob("features-*.f16")) if it.stat().st_size]


def test_cached_features_are_the_towers_to_half_precision(tower: Tower) -> None:
    chosen = [tower.files[3], tower.files[0], tower.files[3]]
    cached = tower.fill().stack(chosen)
    assert cached.dtype == torch.float32
    torch.testing.assert_close(cached, tower.computed(chosen), atol=2e-3, rtol=2e-3)


def test_a_full_cache_is_used_as_it_is(tower: Tower) -> None:
    tower.fill()
    (array,) = arrays(tower)
    before = array.stat().st_mtime_ns
    notes = Notes()

    tower.fill(notes)

    assert notes.lines == []
    assert array.stat().st_mtime_ns == before


def test_an_interrupted_cache_is_gone_on_with(
    tower: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "_BATCH", 2)
    heard = []

    def interrupt(text: str) -> None:
        heard.append(text)
        if len(heard) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tower.fill(Notes(interrupt))
    notes = Notes()
    features = tower.fill(notes).stack(tower.files)

    assert notes.lines[0] == "vision features: 1"
    torch.testing.assert_close(features, tower.computed(tower.files), atol=2e-3, rtol=2e-3)


def test_a_row_that_was_half_written_is_computed_again(tower: Tower) -> None:
    whole = tower.fill().stack(tower.files)
    (array,) = arrays(tower)
    with array.open("r+b") as file:
        file.truncate(array.stat().st_size - 10)
    notes = Notes()

    assert torch.equal(tower.fill(notes).stack(tower.files), whole)

    assert notes.lines[0] == "vision features: 1"


def test_a_name_that_was_half_written_is_computed_again(tower: Tower) -> None:
    whole = tower.fill().stack(tower.files)
    (names,) = tower.cache.glob("features-*.txt")
    names.write_text(names.read_text()[:-5])
    notes = Notes()

    assert torch.equal(tower.fill(notes).stack(tower.files), whole)

    assert notes.lines == ["vision features: 1"]


def test_other_images_are_added_to_those_that_are_there(tower: Tower) -> None:
    tower.fill(files=tower.files[:3])
    notes = Notes()

    features = tower.fill(notes, files=tower.files[2:]).stack(tower.files[2:])

    assert notes.lines[0] == "vision features: 2"
    torch.testing.assert_close(features, tower.computed(tower.files[2:]), atol=2e-3, rtol=2e-3)


def test_another_tower_gets_another_array(tower: Tower) -> None:
    tower.fill()
    with torch.no_grad():
        next(tower.decoder.llava.model.vision_tower.parameters()).add_(1)
    tower.fill()
    assert len(arrays(tower)) == 2


def test_an_image_that_changed_is_read_again(tower: Tower) -> None:
    tower.fill()
    tower.files[0].write_bytes(tower.files[1].read_bytes())

    features = tower.fill().stack(tower.files[:2])

    assert torch.equal(features[0], features[1])


def test_a_disk_without_space_is_refused_before_the_work(
    tower: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(MachineError, match="vision features need"):
        tower.fill()
    assert not arrays(tower)


def test_a_damaged_list_of_images_is_refused(tower: Tower) -> None:
    tower.cache.mkdir()
    (tower.cache / "image-hashes.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        tower.fill()
