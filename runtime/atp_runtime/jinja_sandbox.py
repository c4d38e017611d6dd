"""Compiles a checkpoint's chat template where it can do no harm.

A template is a program written by a stranger. It runs in Jinja's immutable sandbox, with the
names, filters and options that Transformers gives to it
(`transformers.utils.chat_template_utils`), and sees only text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from atp_runtime.errors import InputError

_FIX = "use the template of the checkpoint as it was published, or correct it"


class CompiledTemplate:
    """A chat template that is ready to render.

    Args:
        source: The template's Jinja text.
        origin: Where it was found, for messages.

    Raises:
        InputError: The text is not a valid template.
    """

    def __init__(self, source: str, origin: str) -> None:
        self._origin = origin
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise InputError(
                f"{origin}, line {error.lineno}: {error.message}",
                why="a chat template with a syntax error cannot be rendered",
                fix=_FIX,
            ) from error
        except Exception as error:  # compiling evaluates constant expressions of the template
            raise self._failed(error) from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """The template's text for these variables.

        Raises:
            InputError: The template refuses them, fails, or tries to leave the sandbox.
        """
        try:
            return self._template.render(variables)
        except Exception as error:  # whatever a stranger's program ends with
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> InputError:
        if isinstance(error, SecurityError):
            return InputError(
                f"{self._origin} tries to leave its sandbox: {error}",
                why="a chat template may only make text of messages; this one is not safe to use",
                fix="do not use this checkpoint's template unless you know why it does that",
            )
        reason = str(error) or type(error).__name__
        return InputError(
            f"{self._origin} cannot render this conversation: {reason}",
            why="without the template the model does not see the prompt as it was trained to",
            fix=f"change the order or the roles of the messages, or {_FIX}",
        )


class _GenerationBlocks(Extension):
    """`{% generation %}` marks the assistant's words for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012  (the base class declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        """Keeps the block's content, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _TemplateNamespace(Namespace):
    """Jinja's `namespace()` without names that Python would take for methods of the object."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a template's own name
        self, *positional = args
        attributes = dict(*positional, **kwargs)
        _refuse_private(attributes)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private([name])
        super().__setitem__(name, value)


class _TemplateDict:
    """The `dict` of templates: makes dictionaries, is no class to climb up from."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlocks, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        dict=_TemplateDict(),
        namespace=_TemplateNamespace,
    )
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without Jinja's HTML escapes, which no model was trained on."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse_private(names: Iterable[Any]) -> None:
    for name in names:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"it sets the private name {name!r} on a namespace")
