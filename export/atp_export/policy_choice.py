"""Which policies prune: one before the decoder, one inside it, or one of each.

A name such as `fastervlm`, `fastv` or `fastervlm+fastv`; `atp` stands for the checkpoint's own
modules. Of a single policy settings have their own names, of two the policy's stands before:
`fastervlm.keep=64`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atp_export.policies import Policy, make_policy, policy_names
from atp_export.vision_plan import VisionPolicy
from atp_export.vision_policies import VISION_POLICIES, make_vision_policy
from atp_runtime.errors import InputError

ATP = "atp"
_FIX = "see docs/policies.md for the policies and their settings."


@dataclass(frozen=True)
class PolicyChoice:
    """What prunes.

    Attributes:
        vision: Before the decoder, or None.
        decoder: Inside it, or None.
        modules: Whether the checkpoint's ATP modules prune inside it.
    """

    vision: VisionPolicy | None = None
    decoder: Policy | None = None
    modules: bool = False


def choose_policies(names: str, settings: Mapping[str, Any], source: str) -> PolicyChoice:
    """The policies of a name; what is not set is as their papers have it.

    Args:
        names: One or two, joined by "+".
        settings: By the names of their attributes, as JSON values.
        source: Where they come from, for messages.

    Raises:
        InputError: There is no such policy or setting, a value makes no sense, or the two do not
            go together.
    """
    chosen = names.split("+")
    for name in chosen:
        if name not in (ATP, *policy_names(), *VISION_POLICIES):
            raise InputError(
                f"{source}: unknown policy {name!r}",
                why=f"there are {', '.join(VISION_POLICIES)} before the decoder and "
                f"{', '.join((*policy_names(), ATP))} inside it.",
                fix=f"{_FIX[:-1]}; without --policy, ATP's modules decide.",
            )
    before = [name for name in chosen if name in VISION_POLICIES]
    inside = [name for name in chosen if name not in VISION_POLICIES]
    for place, found in (("before", before), ("inside", inside)):
        if len(found) > 1:
            raise InputError(
                f"{source}: {' and '.join(found)} together",
                why=f"both prune {place} the decoder, and each is meant to see what the other "
                "would have dropped.",
                fix="choose one of them; one before the decoder goes with one inside it.",
            )
    own = _by_policy(chosen, settings, source)
    return PolicyChoice(
        make_vision_policy(before[0], own[before[0]], source) if before else None,
        make_policy(inside[0], own[inside[0]], source) if inside and inside != [ATP] else None,
        modules=inside == [ATP],
    )


def _by_policy(
    names: list[str], settings: Mapping[str, Any], source: str
) -> dict[str, dict[str, Any]]:
    """Settings by policy."""
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in settings.items():
        policy, dot, setting = key.partition(".")
        if not dot and len(names) == 1:
            policy, setting = names[0], key
        if policy not in found or not setting:
            raise InputError(
                f"{source}: setting {key!r} with the policy {'+'.join(names)}",
                why="it does not say which of them it is for.",
                fix=f"write it as {names[0]}.{setting or key}=VALUE.",
            )
        found[policy][setting] = value
    if found.get(ATP):
        raise InputError(
            f"{source}: settings of {ATP}",
            why="its modules were trained with those of the checkpoint's pruning_config.json.",
            fix="leave them away.",
        )
    return found
