"""From a checkpoint directory and options to a job: everything that decides a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from atp_export.integers.stored import stored_bytes
from atp_export.plan import DTYPES, ExportPlan, make_plan, plan_summary
from atp_export.policies import Policy, Yopo, atp_points, policy_names
from atp_export.policy_choice import PolicyChoice, choose_policies
from atp_export.processor_files import processor_sources
from atp_export.versions import package_versions
from atp_export.vision_policies import VISION_POLICIES
from atp_export.workspace import record_file, work_key
from atp_models.architecture import read_architecture
from atp_models.atp import FILE_NAME as MODULES_NAME
from atp_models.atp import AtpModules
from atp_models.checkpoint import Checkpoint, check_tensors
from atp_models.compressor import check_compressor, has_compressor
from atp_models.json_files import read_json
from atp_models.pruning_config import FILE_NAME as CONFIG_NAME
from atp_models.pruning_config import (
    STRUCTURE,
    PruningConfig,
    check_layers,
    default_layers,
    read_pruning_config,
)
from atp_models.routers import check_routers, routed_layers
from atp_models.structure import read_structure
from atp_runtime.errors import InputError
from atp_runtime.structure import Structure

CARD_NAME = "demo_card.json"
POLICY = "policy"
"""Field of `pruning_config.json`: a policy, whose settings the other fields then are."""
UNTRAINED_NOTICE = (
    "The pruning modules are untrained: the checkpoint has no "
    f"{MODULES_NAME}, so thresholds are starting values and the answers of no known quality."
)
ABLATED_NOTICE = (
    "The pruning modules were trained with redundancy {trained!r} and decide by {found!r} here, "
    "so their thresholds were not learned for these scores."
)
UNROUTED_NOTICE = (
    "The checkpoint has routers for layers {layers}, which are not used here, so the decoder was "
    "trained otherwise and the answers are of no known quality."
)

UNCOMPRESSED_NOTICE = (
    "The checkpoint has a compressor, which is not used here, so the decoder was trained on other "
    "image tokens and the answers are of no known quality."
)


@dataclass(frozen=True)
class ExportJob:
    """What to export where.

    Attributes:
        checkpoint: Opened and checked.
        plan: The decisions.
        bundle: The directory to make.
        command: The command line, for the provenance; `prepare_job` does not know it.
        modules: The ATP modules of the plan's pruning points, or None if it has none.
        notice: What must be said with every answer, or None.
    """

    checkpoint: Checkpoint
    plan: ExportPlan
    bundle: Path
    command: str = ""
    modules: AtpModules | None = None
    notice: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """`Checkpoint.fingerprint`, which reads a little of every tensor, once."""
        return self.checkpoint.fingerprint()

    def key(self) -> str:
        """Equal keys give equal bundles."""
        small = [*processor_sources(self.checkpoint.path), self.checkpoint.path / MODULES_NAME]
        hashes = [record_file(path).sha256 for path in small if path.is_file()]
        plan = plan_summary(self.plan)
        return work_key(self.fingerprint, hashes, plan, self.notice, package_versions())


@dataclass(frozen=True)
class ExportOptions:
    """What `atp-export` is told besides its two directories.

    Attributes:
        precision: "fp32" or "fp16".
        dialect: "portable", "native" or "both".
        prune_at: Layers before which visual tokens are dropped; None takes those of the
            checkpoint's `pruning_config.json`, else the paper's fractions of the depth.
        dense: One segment and no pruning.
        redundancy: What S_red is made of, see `PruningConfig`; None takes what the checkpoint
            says. Modules trained otherwise are taken as they are, with a notice.
        policy: Prunes instead of ATP's modules, or before them, see `atp_export.policy_choice`;
            None takes what `pruning_config.json` says.
        settings: Of the policy, as JSON values.
        max_tokens: Longest sequence; None is the model's own limit.
        max_segment_bytes: See `make_plan`.
    """

    precision: str = "fp16"
    dialect: str = "both"
    prune_at: Sequence[int] | None = None
    dense: bool = False
    redundancy: str | None = None
    policy: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    max_segment_bytes: int | None = None


def prepare_job(checkpoint_path: Path, bundle: Path, options: ExportOptions) -> ExportJob:
    """Opens and checks a checkpoint and decides the plan.

    Args:
        checkpoint_path: A Hugging Face LLaVA directory.
        bundle: The directory to make.
        options: What is wanted.

    Raises:
        InputError: The checkpoint cannot be used, or the options contradict it.
    """
    checkpoint = Checkpoint.open(checkpoint_path)
    spec = read_architecture(checkpoint)
    check_tensors(checkpoint, spec)
    choice = _choice(checkpoint_path, options)
    structure = _structure(checkpoint, choice.decoder, spec.text.layers, options)
    config = stored = None
    if choice.modules and not options.dense:
        alone = structure is not None
        layers = spec.text.layers
        stored = _pruning_config(checkpoint_path, options.prune_at, layers, alone=alone)
    config = stored if options.redundancy is None else _ablated(stored, options.redundancy)
    points = atp_points(config) if config else ()
    if choice.decoder is not None:
        points = choice.decoder.points(spec.text.layers)
    plan = make_plan(
        spec,
        points,
        choice.vision.plan(spec.vision) if choice.vision else None,
        precision=options.precision,
        dialect=options.dialect,
        max_tokens=options.max_tokens,
        max_segment_bytes=options.max_segment_bytes,
        stored_bytes=stored_bytes(checkpoint, DTYPES[options.precision]),
        structure=structure,
    )
    routed = [segment.first for segment in plan.segments if plan.routed(segment)]
    check_routers(checkpoint, routed, spec.text.hidden)
    compressing = plan.vision.compressing if plan.vision else None
    if compressing is not None:
        check_compressor(checkpoint, spec.vision, spec.text.hidden, compressing.grid)
    unused = [layer for layer in routed_layers(checkpoint) if layer not in routed]
    modules, notice = _modules(checkpoint_path, config, stored)
    unrouted = UNROUTED_NOTICE.format(layers=_listed(unused)) if unused else None
    idle = has_compressor(checkpoint) and compressing is None
    uncompressed = UNCOMPRESSED_NOTICE if idle else None
    said = (_card_notice(checkpoint_path), notice, unrouted, uncompressed)
    notices = [text for text in said if text]
    notice = " ".join(notices) or None
    return ExportJob(checkpoint, plan, bundle, modules=modules, notice=notice)


def _choice(checkpoint: Path, options: ExportOptions) -> PolicyChoice:
    """What was asked for, or what the checkpoint says, or ATP's modules."""
    others = ("dense", "prune_at", "redundancy")
    given = [name for name in others if getattr(options, name) not in (None, False)]
    if options.policy is not None:
        choice = choose_policies(options.policy, options.settings, "--policy")
        if given and (options.dense or not choice.modules):
            raise InputError(
                f"--policy {options.policy} with --{given[0].replace('_', '-')}",
                why="a policy says itself where and how tokens are dropped.",
                fix="leave one of them away; layers are set with --set.",
            )
        return choice
    if options.settings:
        raise InputError(
            "--set without --policy",
            why="it sets what a policy has.",
            fix=f"name the policy: {', '.join((*VISION_POLICIES, *policy_names()))}.",
        )
    file = checkpoint / CONFIG_NAME
    stored = read_json(file) if file.is_file() and not given else {}
    if POLICY not in stored:
        return PolicyChoice(modules=True)
    settings = {name: value for name, value in stored.items() if name not in (POLICY, STRUCTURE)}
    choice = choose_policies(str(stored[POLICY]), settings, str(file))
    if choice.modules:
        raise InputError(
            f"{file}: the policy {stored[POLICY]!r}",
            why="the file of a checkpoint with ATP modules has the modules' own settings.",
            fix="leave the policy away there, and give --policy.",
        )
    return choice


def _structure(
    checkpoint: Checkpoint, policy: Policy | None, depth: int, options: ExportOptions
) -> Structure | None:
    """What visual tokens are spared: what was asked for, or what the checkpoint says."""
    if isinstance(policy, Yopo):
        return policy.structure(depth, checkpoint.path)
    if options.dense:
        return None
    file = checkpoint.path / CONFIG_NAME
    stored = read_json(file) if file.is_file() else {}
    return read_structure(checkpoint.config, stored, checkpoint.path)


def _pruning_config(
    checkpoint: Path, prune_at: Sequence[int] | None, depth: int, *, alone: bool
) -> PruningConfig | None:
    """Of ATP's modules; without any configuration they are where the paper has them.

    Args:
        checkpoint: Its directory.
        prune_at: Layers that were asked for.
        depth: Of the decoder.
        alone: Something else spares work, so that modules are not wanted unless configured.
    """
    stored = read_pruning_config(checkpoint)
    if prune_at is None and stored is None and alone:
        return None
    if prune_at is None:
        config = stored or PruningConfig(layers=default_layers(depth))
        return config if config.layers else None
    layers = tuple(prune_at)
    check_layers(layers, depth)
    trained = (checkpoint / MODULES_NAME).is_file()
    if stored is not None and trained and layers != stored.layers:
        raise InputError(
            f"--prune-at {_listed(layers)}",
            why=f"the modules of {checkpoint} were trained before layers {_listed(stored.layers)}.",
            fix="leave --prune-at away, or train modules for these layers.",
        )
    return replace(stored, layers=layers) if stored else PruningConfig(layers=layers)


def _ablated(config: PruningConfig | None, redundancy: str) -> PruningConfig:
    """The configuration with another S_red."""
    what = f"--redundancy {redundancy}"
    if config is None:
        why = "nothing is pruned, so there is nothing for it to decide."
        raise InputError(what, why=why, fix="leave --redundancy or --dense away.")
    try:
        return replace(config, redundancy=redundancy)
    except ValueError as error:
        fix = "choose another, or give pruning_config.json strides."
        raise InputError(what, why=f"{error}.", fix=fix) from error


def _listed(layers: Sequence[int]) -> str:
    return ",".join(map(str, layers))


def _modules(
    checkpoint: Path, config: PruningConfig | None, stored: PruningConfig | None
) -> tuple[AtpModules | None, str | None]:
    """The modules, and what to say of them if they were not trained as `config` uses them."""
    if config is None or stored is None:
        return None, None
    path = checkpoint / MODULES_NAME
    if not path.is_file():
        return AtpModules(config).initialise(), UNTRAINED_NOTICE
    trained, found = stored.redundancy, config.redundancy
    notice = ABLATED_NOTICE.format(trained=trained, found=found) if trained != found else None
    return AtpModules.load(path, config), notice


def _card_notice(checkpoint: Path) -> str | None:
    """What the card of an assembled checkpoint wants said with every answer."""
    card = checkpoint / CARD_NAME
    notice = read_json(card).get("notice") if card.is_file() else None
    return str(notice) if notice else None
