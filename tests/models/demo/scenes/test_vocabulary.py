import pytest

from atp_models.demo.scenes.vocabulary import (
    COLOURED,
    COLOURS,
    NAMES,
    PICTURES,
    countable,
    plural,
    with_article,
)


@pytest.mark.parametrize(
    ("name", "several"),
    [
        ("dog", "dogs"),
        ("fox", "foxes"),
        ("bus", "buses"),
        ("fish", "fish"),
        ("butterfly", "butterflies"),
        ("strawberry", "strawberries"),
        ("key", "keys"),
        ("monkey", "monkeys"),
        ("turtle", "turtles"),
        ("cactus", "cactuses"),
        ("rose", "roses"),
    ],
)
def test_plural_is_the_english_one(name: str, several: str) -> None:
    assert plural(name) == several


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("dog", "a dog"),
        ("owl", "an owl"),
        ("umbrella", "an umbrella"),
        ("airplane", "an airplane"),
        ("elephant", "an elephant"),
        ("house", "a house"),
        ("grapes", "grapes"),
        ("scissors", "scissors"),
        ("bread", "bread"),
    ],
)
def test_article_is_the_one_that_is_spoken(name: str, phrase: str) -> None:
    assert with_article(name) == phrase


def test_only_countable_nouns_are_counted() -> None:
    uncountable = {name for name in NAMES if not countable(name)}
    assert uncountable == {"grapes", "scissors", "fire", "corn", "bread", "cheese", "pizza"}


def test_no_two_nouns_share_a_name_or_a_plural_and_no_two_pictures_a_code() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert len({plural(name) for name in NAMES}) == len(NAMES)
    assert len({picture.code for picture in PICTURES}) == len(PICTURES)


def test_every_coloured_noun_comes_once_in_each_of_its_colours() -> None:
    for name, pictures in COLOURED.items():
        colours = [picture.colour for picture in pictures]
        assert len(set(colours)) == len(colours) > 1
        assert set(colours) <= set(COLOURS)
        assert {picture.name for picture in pictures} == {name}
