from atp_runtime.evaluation.intervals import Estimate
from atp_runtime.evaluation.markdown import interval, percent, quoted, table, text_table


def test_numbers_stand_to_the_right_and_texts_to_the_left() -> None:
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
    assert text_table(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |"


def test_shares_are_percent_with_one_decimal() -> None:
    assert (percent(0.12345), percent(1), percent(None)) == ("12.3", "100.0", "-")
    assert interval(Estimate(0.5, 0.25, 0.75)) == "25.0 to 75.0"


def test_text_is_one_line_of_code_whatever_is_in_it() -> None:
    assert quoted("What?\n A. one \n\nB. two") == "`What? / A. one / B. two`"
    assert quoted("a `b`") == "`` a `b` ``"
    assert quoted(" \n") == "(nothing)"
    assert quoted("x" * 50, longest=10) == f"`{'x' * 9}…`"
