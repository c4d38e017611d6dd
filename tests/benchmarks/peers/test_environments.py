from pathlib import Path

import pytest
from tests.benchmarks.peers import environments
from tests.benchmarks.peers.environments import NAMES, environment, missing


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATP_BENCH_PEERS", str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_a_peer_that_is_not_installed_says_how_to_install_it(name: str) -> None:
    assert missing(name) == f"not installed: just bench-peers-setup {name}"


@pytest.mark.slow
def test_a_peer_is_usable_until_its_pins_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environments, "_PINS", tmp_path / "pins")
    (tmp_path / "pins").mkdir()
    (tmp_path / "pins" / "empty.txt").write_text("# nothing\n")

    environments.install("empty")
    assert missing("empty") is None
    assert (environment("empty") / "bin" / "python").is_file()

    (tmp_path / "pins" / "empty.txt").write_text("# nothing else\n")
    assert "other versions are installed" in str(missing("empty"))


@pytest.mark.parametrize("name", NAMES)
def test_every_requirement_is_pinned(name: str) -> None:
    lines = (environments._PINS / f"{name}.txt").read_text().splitlines()

    assert all("==" in line for line in lines if not line.startswith("#"))
