import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from atp_runtime.evaluation.data_file import Document
from atp_runtime.evaluation.formats.format import Dataset, Format, ReadOptions
from atp_runtime.evaluation.formats.registry import find_format, read_dataset


@pytest.fixture
def touch(tmp_path: Path) -> Callable[[str], Path]:
    """Makes an empty image file."""

    def make(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    return make


Read = Callable[..., tuple[Format, Dataset]]


@pytest.fixture
def read() -> Read:
    """Finds the format of a path and reads it."""

    def find_and_read(path: Path, **options: object) -> tuple[Format, Dataset]:
        document = Document.read(path)
        found = find_format(document, None)
        return found, read_dataset(document, found, replace(ReadOptions(), **options))

    return find_and_read


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, object], Path]:
    """Writes one file: a value as JSON, a text as it is."""

    def write(name: str, content: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write
