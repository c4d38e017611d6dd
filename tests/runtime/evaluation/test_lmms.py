"""The model for lmms-eval, against the base class of its version 0.7 and, if installed, itself."""

import abc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from atp_runtime.errors import InputError
from atp_runtime.evaluation import lmms as adapter
from atp_runtime.evaluation.lmms import generation_options
from atp_runtime.generation import GenerationOptions
from atp_runtime.sampling import SamplingOptions
from atp_runtime.session import Session


class Base(abc.ABC):
    """What `lmms_eval.api.model.lmms` asks of a model, and gives it."""

    is_simple = True

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}
        self.cache_hook = Hook()
        self.cleaned = False

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...

    def clean(self) -> None:
        self.cleaned = True


class Hook:
    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def add_partial(self, *values: Any) -> None:
        self.told.append(values)


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str


@dataclass(frozen=True)
class Request:
    args: tuple[Any, ...]


@pytest.fixture
def lmms_eval(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The parts of lmms-eval that the model touches."""
    for name, content in {
        "lmms_eval.api.model": {"lmms": Base},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    adapter._model_class.cache_clear()
    yield
    adapter._model_class.cache_clear()


@pytest.fixture
def model(lmms_eval: None, tiny_bundle: Path) -> Iterator[Any]:
    made = adapter.AtpLlava(bundle=str(tiny_bundle), threads=1, batch_size=1, device="cpu")
    yield made
    made.clean()


Ask = Callable[..., str]


@pytest.fixture
def ask(model: Any) -> Ask:
    def ask(prompt: str, images: Any = (), **wanted: Any) -> str:
        model.task_dict = {"task": {"test": [{"images": images}]}}
        options = {"max_new_tokens": 8, **wanted}
        arguments = (prompt, options, lambda doc: doc["images"], 0, "task", "test")
        return model.generate_until([Request(arguments)])[0]

    return ask


@pytest.fixture
def session(tiny_bundle: Path) -> Iterator[Session]:
    with Session.open(tiny_bundle, threads=1) as session:
        yield session


EIGHT = GenerationOptions(8)


def test_model_is_found_by_the_name_that_is_registered(lmms_eval: None) -> None:
    manifest = adapter.models()
    module, _, name = manifest.simple_class_path.rpartition(".")
    found = getattr(sys.modules[module], name)
    assert manifest.model_id == "atp_llava"
    assert issubclass(found, Base)
    assert found.is_simple
    assert found is adapter.AtpLlava


def test_no_other_name_is_made_up() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        _ = adapter.Other


@pytest.mark.parametrize("count", [0, 1, 2])
def test_answers_are_the_sessions(
    ask: Ask, session: Session, photos: list[Path], count: int
) -> None:
    images = [Image.open(path) for path in photos[:count]]
    expected = session.ask("What is it?", photos[:count], EIGHT).text
    assert ask("What is it?", images) == expected
    assert ask("<image> What is it?", [images]) == expected


def test_document_may_have_one_image_or_none_at_all(
    ask: Ask, session: Session, photos: list[Path]
) -> None:
    one = session.ask("Why?", photos[:1], EIGHT).text
    assert ask("Why?", Image.open(photos[0])) == one
    assert ask("Why?", None) == session.ask("Why?", (), EIGHT).text


def test_answer_ends_before_what_the_task_calls_its_end(ask: Ask) -> None:
    whole = ask("What is it?")
    assert ask("What is it?", until=[whole[3:5]]) == whole[:3]
    assert ask("What is it?", until=whole[3:5]) == whole[:3]


def test_cache_is_told_each_answer(ask: Ask, model: Any) -> None:
    answer = ask("What is it?")
    (told,) = model.cache_hook.told
    assert told == ("generate_until", ("What is it?", {"max_new_tokens": 8}), answer)


def test_rule_may_be_chosen(lmms_eval: None, tiny_bundle: Path, photos: list[Path]) -> None:
    made = adapter.AtpLlava(bundle=str(tiny_bundle), threads=1, select="uniform", keep="8/4/2")
    made.task_dict = {"task": {"test": [photos[:1]]}}
    made.generate_until([Request(("Why?", {"max_new_tokens": 1}, list, 0, "task", "test"))])
    select = made._session.model.select
    made.clean()
    assert select.keep == {1: 8, 2: 4, 3: 2}


def test_question_is_answered_by_nothing_when_it_cannot_be_asked(ask: Ask) -> None:
    with pytest.raises(InputError, match="the prompt has"):
        ask("?" * 5000)
    ask("Why?")
    with pytest.warns(UserWarning, match="task 0: the prompt has"):
        assert ask("?" * 5000) == ""


def test_bundle_is_given_back_when_the_run_is_over(lmms_eval: None, tiny_bundle: Path) -> None:
    made = adapter.AtpLlava(bundle=str(tiny_bundle), threads=1)
    made.clean()
    assert made.cleaned
    with pytest.raises(InputError, match="the session is closed"):
        made._session.ask("Why?")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch_size": 4}, "batch_size is 4"),
        ({"batch_size": "4"}, "batch_size is 4"),
        ({"backend": "cuda"}, "no backend 'cuda'"),
        ({"bundle": "nowhere"}, "nowhere: no such directory"),
        ({"select": "random"}, "--select random without --keep"),
        ({"select": "random", "keep": "many"}, "keep is 'many'"),
    ],
)
def test_arguments_are_refused(lmms_eval: None, tiny_bundle: Path, given, said: str) -> None:
    with pytest.raises(InputError, match=said):
        adapter.AtpLlava(**{"bundle": str(tiny_bundle), "threads": 1, **given})


def test_what_the_runtime_has_not_is_refused(model: Any, ask: Ask) -> None:
    with pytest.raises(InputError, match="likelihood"):
        model.loglikelihood([])
    with pytest.raises(InputError, match="several rounds"):
        model.generate_until_multi_round([])
    with pytest.raises(InputError, match="beam search"):
        ask("Why?", num_beams=4)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, GenerationOptions(1024)),
        ({"max_new_tokens": 16, "until": "\n\n"}, GenerationOptions(16, stop=("\n\n",))),
        ({"until": ["a", "", "b"], "num_beams": 1}, GenerationOptions(1024, stop=("a", "b"))),
        ({"temperature": 0, "top_p": None, "do_sample": True}, GenerationOptions(1024)),
        ({"temperature": 0.7, "do_sample": False}, GenerationOptions(1024)),
        (
            {"temperature": 0.5, "top_p": 0.9, "top_k": 5},
            GenerationOptions(1024, SamplingOptions(0.5, 5, 0.9, 3)),
        ),
        ({"do_sample": True}, GenerationOptions(1024, SamplingOptions(1.0, seed=3))),
    ],
)
def test_options_of_a_task_are_understood(wanted, expected: GenerationOptions) -> None:
    assert generation_options(wanted, seed=3) == expected


def test_lmms_eval_itself_finds_and_makes_the_model(
    tiny_bundle: Path, photos: list[Path], session: Session
) -> None:
    instance = pytest.importorskip("lmms_eval.api.instance")
    registry = pytest.importorskip("lmms_eval.models.registry_v2").ModelRegistryV2()
    registry.register_manifest(adapter.models())
    arguments = f"bundle={tiny_bundle},backend=onnxruntime,threads=1"
    made = registry.get_model_class("atp_llava").create_from_arg_string(
        arguments, {"batch_size": 1, "max_batch_size": None, "device": "cpu"}
    )
    made.task_dict = {"task": {"test": [photos[:1]]}}
    asked = instance.Instance(
        "generate_until",
        ("Why?", {"max_new_tokens": 8}, list, 0, "task", "test"),
        0,
        {"task": "task", "doc_id": 0, "repeats": 1},
    )
    assert made.generate_until([asked]) == [session.ask("Why?", photos[:1], EIGHT).text]
    made.clean()
