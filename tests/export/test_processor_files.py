from __future__ import annotations

import json
from pathlib import Path

import pytest

from atp_export.processor_files import copy_processor_files, processor_sources
from atp_runtime.errors import InputError


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "processor"


def test_files_are_copied_byte_for_byte_and_named(checkpoint: Path, target: Path) -> None:
    names = copy_processor_files(checkpoint, target)
    assert names == sorted(path.name for path in target.iterdir())
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= set(names)
    for name in names:
        assert (target / name).read_bytes() == (checkpoint / name).read_bytes()


def test_weights_are_not_copied(checkpoint: Path, target: Path) -> None:
    copy_processor_files(checkpoint, target)
    assert not list(target.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        ("tokenizer_config.json", "{"),
        ("chat_template.jinja", "{% for message in messages %}"),
    ],
)
def test_a_damaged_file_is_refused_by_name(
    own_checkpoint: Path, target: Path, name: str, content: str
) -> None:
    (own_checkpoint / name).write_text(content)
    with pytest.raises(InputError, match=name):
        copy_processor_files(own_checkpoint, target)


def test_an_image_processor_of_another_kind_is_refused(own_checkpoint: Path, target: Path) -> None:
    for file in own_checkpoint.glob("*processor_config.json"):
        file.unlink()
    config = {"image_processor_type": "FuyuImageProcessor"}
    (own_checkpoint / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="FuyuImageProcessor"):
        copy_processor_files(own_checkpoint, target)


def test_a_checkpoint_without_image_processor_is_refused(
    own_checkpoint: Path, target: Path
) -> None:
    for file in own_checkpoint.glob("*processor_config.json"):
        file.unlink()
    with pytest.raises(InputError, match=r"no preprocessor_config\.json") as caught:
        copy_processor_files(own_checkpoint, target)
    assert "photos" in caught.value.why


def test_an_image_processor_inside_of_the_newer_file_is_enough(
    own_checkpoint: Path, target: Path
) -> None:
    own = own_checkpoint / "preprocessor_config.json"
    nested = {"image_processor": json.loads(own.read_text())}
    (own_checkpoint / "processor_config.json").write_text(json.dumps(nested))
    own.unlink()
    names = copy_processor_files(own_checkpoint, target)
    assert "processor_config.json" in names
    assert "preprocessor_config.json" not in names


@pytest.mark.parametrize("older", [(), ("tokenizer.model",), ("vocab.json", "merges.txt")])
def test_a_checkpoint_without_tokenizer_json_is_refused(
    own_checkpoint: Path, target: Path, older: tuple[str, ...]
) -> None:
    (own_checkpoint / "tokenizer.json").unlink()
    for name in older:
        (own_checkpoint / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"no tokenizer\.json") as caught:
        copy_processor_files(own_checkpoint, target)
    assert "AutoTokenizer" in caught.value.fix
    assert not target.exists()


def test_sources_name_what_decides_the_result(own_checkpoint: Path) -> None:
    names = {path.name for path in processor_sources(own_checkpoint)}
    assert {"tokenizer.json", "chat_template.jinja", "config.json"} <= names
    assert "model.safetensors" not in names
    assert all(path.is_file() for path in processor_sources(own_checkpoint))
