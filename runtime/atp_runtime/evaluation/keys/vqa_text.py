"""How the VQA challenge makes two wordings of one answer equal.

The rules are those of its evaluation code (visualqa.org): punctuation, then number words,
articles and contractions. It skips them where all people gave the same answer; here they always
apply, as everybody applies them before submitting.
"""

from __future__ import annotations

import re

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_WITH_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_ARTICLES = ("a", "an", "the")
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
} | {"none": "0"}
# "let's" and "she's" are missing, and so are all with "I": the challenge's code never changes them.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll
    you're you've
"""


def _misspellings(word: str) -> list[str]:
    """The word with any one of its apostrophes forgotten."""
    places = [place for place, character in enumerate(word) if character == "'"]
    return [word[:place] + word[place + 1 :] for place in places]


_CONTRACTIONS = {wrong: word for word in _CONTRACTED.split() for wrong in _misspellings(word)}


def normalised(answer: str) -> str:
    """An answer as the VQA challenge compares it."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    words = (_NUMBERS.get(word, word) for word in _without_punctuation(text).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Punctuation at the edge of a word goes, between two words it becomes a space."""
    cleaned, thousands = text, _DIGITS_WITH_COMMA.search(text)
    for mark in _PUNCTUATION:
        at_an_edge = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if at_an_edge or thousands else " ")
    return _PERIOD.sub("", cleaned)
