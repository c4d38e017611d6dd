"""The hand-made bundle with engines that host memory can run."""

import shutil
from pathlib import Path

import pytest
from tests.runtime.backends.host_engines import write_engines
from tests.runtime.backends.tensorrt_bench import Bench


@pytest.fixture
def built(own_bundle: Path) -> Path:
    """The hand-made bundle, for a test that changes it, with engines for up to 64 tokens."""
    write_engines(own_bundle)
    return own_bundle


@pytest.fixture
def bench(built: Path) -> Bench:
    return Bench.of(built)


@pytest.fixture(scope="session")
def built_tiny(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `tiny` with engines for up to 512 tokens."""
    root = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("built") / "bundle"))
    write_engines(root, longest=512)
    return root
