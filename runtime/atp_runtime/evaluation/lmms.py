"""The `atp_llava` model of lmms-eval: its tasks, answered by a bundle.

lmms-eval finds `models` by the entry point of this distribution and then asks for `AtpLlava`,
which is made when it is first asked for: its base class, and with it torch, is imported by
nobody else.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from atp_runtime.backends import open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.errors import InputError
from atp_runtime.evaluation.pruning_choice import OWN, PruningChoice
from atp_runtime.generation import GenerationOptions
from atp_runtime.sampling import SamplingOptions
from atp_runtime.session import Session

_NAME = "AtpLlava"
_PLACEHOLDER = "<image>"
_LONGEST_ANSWER = 1024  # tokens, where the task says nothing


def models() -> Any:
    """What lmms-eval registers: the model's name and where its class is."""
    registry = importlib.import_module("lmms_eval.models.registry_v2")
    return registry.ModelManifest(model_id="atp_llava", simple_class_path=f"{__name__}.{_NAME}")


def __getattr__(name: str) -> Any:
    if name == _NAME:
        return _model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _model_class() -> type:
    base = importlib.import_module("lmms_eval.api.model").lmms
    return type(_NAME, (BundleModel, base), {"__module__": __name__})


class BundleModel:
    """What `AtpLlava` adds to the base class of lmms-eval's models.

    Args:
        bundle: The bundle's directory.
        backend: What runs it.
        threads: CPU threads; None lets the backend decide.
        select: What prunes, see `atp_runtime.evaluation.pruning_choice`.
        keep: For such a rule, tokens kept at each pruning point: "120/70/34".
        batch_size: Must be 1.
        seed: Of random pruning and sampling.
        _ignored: What lmms-eval tells every model, such as a device.

    Raises:
        InputError: Bundle or arguments cannot be used.
        MachineError: Memory or a package is missing.
    """

    is_simple = True
    task_dict: Mapping[str, Any]
    cache_hook: Any

    def __init__(
        self,
        bundle: str,
        backend: str = "onnxruntime",
        threads: int | None = None,
        select: str = OWN,
        keep: str | int = "",
        batch_size: int | str = 1,
        seed: int = 0,
        **_ignored: Any,
    ) -> None:
        super().__init__()
        if int(batch_size) != 1:
            raise InputError(
                f"batch_size is {batch_size}",
                why="the runtime answers one question at a time.",
                fix="leave --batch_size away.",
            )
        choice = PruningChoice(select, _counts(str(keep)))
        opened = Bundle.open(Path(bundle))
        self._session = Session(opened, open_backend(backend, threads=threads))
        self._select = choice.apply(self._session.model, seed)
        self._seed = seed
        self._proven = False

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers questions, each in a conversation of its own.

        One that cannot be asked, because it is too long or its image is damaged, is answered by
        nothing and a warning, unless it is the first: then none may work.

        Args:
            requests: Their `args` are prompt, generation options, a function from a document to
                its images, and the document's number, task and split.

        Raises:
            InputError: The first question cannot be asked, or wants what the runtime has not.
        """
        progress = importlib.import_module("tqdm").tqdm
        return [self._answer(it.args) for it in progress(requests, desc="atp_llava", leave=False)]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:  # noqa: ARG002
        """Refuses.

        Raises:
            InputError: Always.
        """
        raise _unsupported("the likelihood of given answers", "output_type: generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:  # noqa: ARG002
        """Refuses.

        Raises:
            InputError: Always.
        """
        raise _unsupported("several rounds", "one round")

    def clean(self) -> None:
        """Gives the bundle back."""
        self._session.close()
        super().clean()  # type: ignore[misc]

    def _answer(self, arguments: tuple[Any, ...]) -> str:
        prompt, wanted, images_of, number, task, split = arguments
        images = list(_flat(images_of(self.task_dict[task][split][number])))
        self._session.model.select = self._select(f"{task}/{split}/{number}")
        options = generation_options(wanted, self._seed)
        try:
            answer = self._session.ask(prompt.replace(_PLACEHOLDER, "").strip(), images, options)
        except InputError as error:
            if not self._proven:
                raise
            warnings.warn(f"{task} {number}: {error}", stacklevel=2)
            return ""
        self._proven = True
        self.cache_hook.add_partial("generate_until", (prompt, wanted), answer.text)
        return answer.text


def generation_options(wanted: Mapping[str, Any], seed: int) -> GenerationOptions:
    """A task's generation options as ours.

    Args:
        wanted: As in the task's file: until, max_new_tokens, do_sample, temperature, top_p, top_k.
        seed: Of the sampling.

    Raises:
        InputError: It wants beam search, or a value is out of its range.
    """
    if (wanted.get("num_beams") or 1) > 1:
        raise _unsupported("beam search", "num_beams: 1")
    until = wanted.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    return GenerationOptions(
        max_new_tokens=wanted.get("max_new_tokens") or _LONGEST_ANSWER,
        sampling=_sampling(wanted, seed),
        stop=tuple(filter(None, stop)),
    )


def _counts(keep: str) -> tuple[int, ...]:
    try:
        return tuple(int(it) for it in keep.split("/") if it)
    except ValueError as error:
        raise InputError(
            f"keep is {keep!r}",
            why="it must be token counts, one per pruning point.",
            fix="write them as keep=120/70/34.",
        ) from error


def _sampling(wanted: Mapping[str, Any], seed: int) -> SamplingOptions:
    temperature = wanted.get("temperature")
    drawn = wanted.get("do_sample", bool(temperature))
    if not drawn or temperature == 0:
        return SamplingOptions()
    return SamplingOptions(
        temperature=1.0 if temperature is None else float(temperature),
        top_k=wanted.get("top_k") or 0,
        top_p=1.0 if wanted.get("top_p") is None else float(wanted["top_p"]),
        seed=seed,
    )


def _flat(images: Any) -> Iterable[Any]:
    """The images of a document, which come as a list, nested or not, or as nothing."""
    if images is None:
        return
    if not isinstance(images, (list, tuple)):
        yield images
        return
    for it in images:
        yield from _flat(it)


def _unsupported(what: str, instead: str) -> InputError:
    return InputError(
        f"a task wants {what}",
        why="the atp_llava model only answers questions, greedily or sampled.",
        fix=f"choose tasks with `{instead}`.",
    )
