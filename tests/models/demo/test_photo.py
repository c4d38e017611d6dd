from pathlib import Path

import pytest
from PIL import Image

from atp_models.demo import demo_photo
from atp_runtime.errors import MachineError


def test_demo_photo_is_a_real_photo_that_fills_a_336_pixel_crop(tmp_path: Path) -> None:
    photo = demo_photo(tmp_path / "new" / "cache")
    with Image.open(photo) as image:
        assert image.mode == "RGB"
        assert min(image.size) >= 336
        assert len(image.getcolors(maxcolors=1 << 20)) > 10_000
    assert list(photo.parent.iterdir()) == [photo]


def test_demo_photo_says_what_to_install_when_scikit_image_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(MachineError, match=r"coffee\.png") as caught:
        demo_photo(tmp_path)
    assert "scikit-image" in caught.value.fix
