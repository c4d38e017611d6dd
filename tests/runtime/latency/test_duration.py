import pytest

from atp_runtime.errors import InputError
from atp_runtime.latency.duration import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("400ms", 0.4), ("1.5s", 1.5), (" 2 s", 2.0), (".5ms", 0.0005)]
)
def test_a_time_is_read_with_its_unit(text: str, seconds: float) -> None:
    assert parse_duration(text, "--deadline") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["400", "ms", "", "-3ms", "0ms", "4 minutes", "1e3ms", "infs"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="--deadline") as refused:
        parse_duration(text, "--deadline")
    assert "400ms" in refused.value.fix
