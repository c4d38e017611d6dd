"""Names of graph inputs and outputs."""

from atp_runtime.tensor_names import cache_names


def test_cache_names_carry_the_layer_of_the_whole_decoder() -> None:
    assert cache_names(13) == (
        "past_key_values.13.key",
        "past_key_values.13.value",
        "present.13.key",
        "present.13.value",
    )
