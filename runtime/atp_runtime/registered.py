"""What other packages register: rules and policies of their own, as entry points."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from atp_runtime.errors import InputError

RULES, POLICIES = "atp_llava.rules", "atp_llava.policies"
"""Groups of entry points."""


def registered_names(group: str) -> list[str]:
    """What is registered in a group, sorted."""
    return sorted({it.name for it in entry_points(group=group)})


def load_registered(group: str, name: str, base: Any) -> Any:
    """The class that a package registered under a name; None if there is none.

    Args:
        group: `RULES` or `POLICIES`.
        name: What is looked for.
        base: The class that it must be a subclass of.

    Raises:
        InputError: It cannot be imported, or is something else.
    """
    found = next(iter(entry_points(group=group, name=name)), None)
    if found is None:
        return None
    try:
        loaded = found.load()
    except (ImportError, AttributeError) as error:
        raise _unusable(group, name, found.value, f"it cannot be imported: {error}.") from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        wanted = f"{base.__module__}.{base.__qualname__}"
        raise _unusable(group, name, found.value, f"it is no subclass of {wanted}.")
    return loaded


def _unusable(group: str, name: str, value: str, why: str) -> InputError:
    return InputError(
        f"{name!r} of {group}, registered as {value}",
        why=why,
        fix="correct or uninstall the package that registers it; see docs/policies.md.",
    )
