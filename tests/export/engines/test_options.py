from __future__ import annotations

import pytest

from atp_export.engines.options import EngineOptions, add_engine_options, engine_options
from atp_runtime.cli.command import CommandParser
from atp_runtime.errors import InputError


def parsed(*words: str) -> EngineOptions:
    parser = CommandParser(prog="atp-export engines")
    add_engine_options(parser)
    return engine_options(parser.parse_args(["bundle", *words]))


def test_without_options_bundle_and_tensorrt_decide() -> None:
    assert parsed() == EngineOptions()


def test_options_are_taken_as_they_are_written() -> None:
    words = "--dialect native --max-tokens 900 --kept 300,150,0 --workspace 512"
    assert parsed(*words.split(), "--optimisation-level", "2") == EngineOptions(
        dialect="native",
        max_tokens=900,
        kept=(300, 150, 0),
        workspace_bytes=512 * 2**20,
        optimisation_level=2,
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--max-tokens", "0"),
        ("--max-tokens", "-3"),
        ("--max-tokens", "²"),
        ("--workspace", "1.5"),
        ("--kept", "300,,60"),
        ("--kept", "a"),
        ("--optimisation-level", "6"),
        ("--dialect", "both"),
        ("--dry-run", "--print-trtexec"),
    ],
)
def test_nonsense_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(InputError):
        parsed(*words)
