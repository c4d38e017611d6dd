"""Data of three photos with four questions each, about which tiny bundles know nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from atp_runtime.evaluation.answer_log import AnsweredQuestion, DataFile, Run

QUESTIONS = ("What is this?", "Is it red?", "How many are there?", "Where is it?")


@pytest.fixture(scope="session")
def scenes(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA conversations about the photos, asked in an order that changes the photo each time."""
    data = tmp_path_factory.mktemp("scenes") / "scenes.json"
    records = [
        {
            "id": f"{photo.stem}-{number}",
            "image": str(photo),
            "kind": ("what", "existence", "count", "place")[number],
            "objects": 3 * place,
            "conversations": [
                {"from": "human", "value": f"<image>\n{text}"},
                {"from": "gpt", "value": "Yes." if number == 1 else "nobody knows"},
            ],
        }
        for number, text in enumerate(QUESTIONS)
        for place, photo in enumerate(photos)
    ]
    data.write_text(json.dumps(records))
    return data


Answered = Callable[..., AnsweredQuestion]


@pytest.fixture(scope="session")
def answered() -> Answered:
    """An answered question about one image of 16 tokens; a test changes what it is about."""
    plain = AnsweredQuestion(
        id="1",
        group="1",
        kind="",
        prompt="What?",
        images=("a.png",),
        truth="red",
        answer="red",
        read="red",
        score=1.0,
        finish_reason="eos",
        visual_tokens=16,
        mean_visual_tokens=8.0,
        kept=(8, 4),
        image_run=True,
        seconds={"preprocess": 0.1, "vision": 0.2, "prefill": 0.5, "total": 1.0},
        numbers={},
    )

    def make(name: str = "1", **fields: object) -> AnsweredQuestion:
        return replace(plain, id=name, **{"group": name, **fields})

    return make


@pytest.fixture(scope="session")
def this_run() -> Run:
    """What makes a run the same as another."""
    return Run(
        version="1",
        bundle="b" * 64,
        data=(DataFile("d.json", "d" * 64),),
        format="llava",
        split="",
        circular=True,
        limit=None,
        seed=0,
        prompt_suffix="",
        max_new_tokens=32,
        select="bundle",
        keep=(),
        images=True,
    )
