from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor

from atp_models.random_configs import tiny_config
from atp_models.random_processor import write_processor
from atp_runtime.chat import ChatTemplate, ImagePart, Message, TextPart
from atp_runtime.errors import InputError
from atp_runtime.prompt import PromptWriter, expand_images
from atp_runtime.tokenizer import Tokenizer

CONFIG = tiny_config()
IMAGE, TOKENS = CONFIG.image_token_id, 16


@pytest.fixture(scope="module")
def processor_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("processor")
    write_processor(directory, CONFIG)
    return directory


@pytest.fixture(scope="module")
def writer(processor_files: Path) -> PromptWriter:
    template, tokenizer = (it.from_dir(processor_files) for it in (ChatTemplate, Tokenizer))
    return PromptWriter(template, tokenizer, IMAGE)


def said(role: str, text: str, images: int = 0) -> Message:
    return Message(role, (*[ImagePart()] * images, TextPart(text)))


def as_transformers_has_it(message: Message, photo: Path) -> dict[str, object]:
    parts = [
        {"type": "text", "text": part.text}
        if isinstance(part, TextPart)
        else {"type": "image", "path": str(photo)}
        for part in message.content
    ]
    return {"role": message.role, "content": parts}


@pytest.mark.parametrize(
    "messages",
    [
        [said("user", "hello")],
        [said("user", "What is this?", 1)],
        [said("system", "Be brief."), said("user", "Both?", 2)],
        [said("user", "This?", 1), said("assistant", "A cat."), said("user", "And this?", 1)],
    ],
    ids=["text", "image", "system and two images", "two turns"],
)
def test_ids_are_those_of_transformers(
    messages: list[Message],
    writer: PromptWriter,
    processor_files: Path,
    photos: list[Path],
) -> None:
    processor = AutoProcessor.from_pretrained(processor_files)
    expected = processor.apply_chat_template(
        [as_transformers_has_it(message, photos[0]) for message in messages],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )["input_ids"]
    draft = writer.draft(messages)
    assert writer.ids(draft, [TOKENS] * draft.count(IMAGE)) == list(expected[0])


def test_prompt_is_refused_when_the_template_has_no_place_for_photos(
    processor_files: Path, tmp_path: Path
) -> None:
    text_only = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(text_only)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((processor_files / name).read_bytes())
    tokenizer = Tokenizer.from_dir(tmp_path)
    writer = PromptWriter(ChatTemplate.from_dir(tmp_path), tokenizer, 7)
    with pytest.raises(InputError, match=r"0 image placeholder\(s\) for 1 image"):
        writer.draft([said("user", "hello", 1)])


def test_text_is_refused_when_it_has_the_placeholder_in_it(writer: PromptWriter) -> None:
    with pytest.raises(InputError, match="the question contains <image>"):
        writer.check_text("What does <image> mean?", "the question")


@pytest.mark.parametrize("text", ["What does < image > mean?", "image", "<img>", ""])
def test_text_is_accepted_when_it_merely_resembles_the_placeholder(
    writer: PromptWriter, text: str
) -> None:
    writer.check_text(text, "the question")


def test_answer_no_longer_counts_as_an_image_when_it_is_quoted(writer: PromptWriter) -> None:
    answer = "HTML has <img>, not <image>."
    quoted = writer.quotable(answer)
    assert quoted == "HTML has <img>, not < image>."
    messages = [said("user", "HTML?", 1), said("assistant", quoted), said("user", "Sure?")]
    assert writer.draft(messages).count(IMAGE) == 1


@given(st.lists(st.integers(0, 5), max_size=20), st.data())
def test_every_placeholder_becomes_as_many_as_its_image_has_tokens(
    ids: list[int], data: st.DataObject
) -> None:
    images = ids.count(3)
    counts = data.draw(st.lists(st.integers(1, 7), min_size=images, max_size=images))
    expanded = expand_images(ids, 3, counts)
    assert [token for token in expanded if token != 3] == [token for token in ids if token != 3]
    following = iter(counts)
    parts = [[token] * (next(following) if token == 3 else 1) for token in ids]
    assert expanded == [token for part in parts for token in part]


@pytest.mark.parametrize("images", [0, 1, 3])
def test_prompt_is_refused_when_places_and_images_differ(writer: PromptWriter, images: int) -> None:
    written = "<image> and <image>"
    parts = (*[ImagePart()] * images, TextPart(written))
    places = images + 2
    with pytest.raises(InputError, match=rf"{places} image placeholder\(s\) for {images} image"):
        writer.draft([Message("user", parts)])
