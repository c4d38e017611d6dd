"""Patches are labelled by the picture that covers them, and said as sums of word embeddings."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from atp_models.demo.curriculum.patch_words import BACKGROUND, GRID, NONE, PatchLabels, PatchWords
from atp_models.demo.curriculum.warmup import warm_up
from atp_models.demo.scenes.layout import Item, Scene, make_scene
from atp_models.demo.scenes.vocabulary import COLOURS, NAMES, PICTURES

DOG = next(p for p in PICTURES if p.name == "dog")
HEART = next(p for p in PICTURES if (p.name, p.colour) == ("heart", "blue"))
SCENE = Scene((0, 0), "plain", (Item(DOG, 70, 70, 56), Item(HEART, 259, 259, 112)))
WORDS = (*NAMES, *COLOURS, "background", "small", "large", "top", "middle", "bottom")
WIDTH = 128


def words() -> PatchWords:
    known = {word: at for at, word in enumerate((*WORDS, "left", "center", "right"))}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="dog"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    generator = torch.Generator().manual_seed(0)
    return PatchWords(torch.randn(len(known), WIDTH, generator=generator), tokenizer)


def test_a_patch_inside_a_picture_is_labelled_by_it() -> None:
    labels = PatchLabels.of(SCENE)
    dog, heart, nothing = 5 * GRID + 5, 18 * GRID + 18, 20
    assert labels.noun[[dog, heart, nothing]].tolist() == [
        NAMES.index("dog"), NAMES.index("heart"), BACKGROUND
    ]  # fmt: skip
    assert labels.colour[[dog, heart, nothing]].tolist() == [NONE, COLOURS.index("blue"), NONE]
    assert labels.size[[dog, heart, nothing]].tolist() == [0, 1, NONE]


def test_the_rim_of_a_picture_is_uncertain() -> None:
    labels = PatchLabels.of(SCENE)
    assert not labels.certain[5 * GRID + 2]  # 35 pixels from the left: 35 from the dog's middle
    assert labels.certain[5 * GRID + 5]
    assert labels.certain[20]


def test_what_is_said_of_a_patch_is_nearest_to_its_noun() -> None:
    vocabulary, labels = words(), PatchLabels.of(SCENE)
    patch = torch.arange(GRID * GRID)
    said = vocabulary.targets(labels.noun, labels.colour, labels.size, patch)
    centred = vocabulary.nouns - vocabulary.nouns.mean(0)
    shown = labels.noun != BACKGROUND
    assert torch.equal((said[shown] @ centred.T).argmax(1), labels.noun[shown])


def test_a_warmed_up_projector_names_patches_of_scenes_it_was_not_shown() -> None:
    labels = [PatchLabels.of(make_scene(0, number)) for number in range(60)]
    generator = torch.Generator().manual_seed(1)
    looks = torch.randn(BACKGROUND + 1, 32, generator=generator)
    torch.manual_seed(0)
    projector = torch.nn.Sequential()
    projector.add_module("linear_1", torch.nn.Linear(32, WIDTH))
    projector.add_module("act", torch.nn.GELU())
    projector.add_module("linear_2", torch.nn.Linear(WIDTH, WIDTH))
    heard: list[str] = []
    right = warm_up(
        projector, lambda n: looks[labels[n].noun], labels, words(), seed=0, report=heard.append,
        steps=60,
    )  # fmt: skip
    assert right > 0.8
    assert heard[0].startswith("warm-up: step 0")
