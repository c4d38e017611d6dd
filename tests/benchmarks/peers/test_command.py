import pytest
from tests.benchmarks.peers.command import main


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--precision", "int4"], "'int4' is none of fp32, fp16, int8"),
        (["--peers", "vllm"], "'vllm' is none of Transformers, llama.cpp"),
        (["--kept", "0"], "shares are above 0 and at most 1"),
        (["--kept", "half"], "shares are above 0 and at most 1"),
    ],
)
def test_what_is_not_there_to_compare_is_refused(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)

    assert expected in capsys.readouterr().err
