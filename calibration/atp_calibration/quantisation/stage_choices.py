"""Decides, stage by stage, how linear layers are quantised, and says what is written for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from atp_calibration.quantisation.choice import INT4, Choice
from atp_calibration.quantisation.groups import Group, find_groups
from atp_calibration.quantisation.int4 import GPTQ
from atp_calibration.quantisation.layer_input import LayerInput
from atp_calibration.quantisation.linear_layers import linear_layers
from atp_calibration.quantisation.migration import Migration
from atp_calibration.quantisation.qdq import Form
from atp_calibration.quantisation.search import SearchOptions, search
from atp_calibration.quantisation.tensor_files import mapped
from atp_runtime.bundle import Bundle
from atp_runtime.errors import InputError
from atp_runtime.manifest import Stage

Weights = Mapping[str, npt.NDArray[np.floating]]


@dataclass(frozen=True, eq=False)
class StageLayers:
    """The linear layers of a stage.

    Attributes:
        stage: Which.
        groups: Those whose inputs are quantised together; a scale is folded only where every
            dialect has the place for it.
        undivided: Layers whose inputs are no multiple of INT4's block.
        transposed: Layers whose weights are stored [out, in].
        read: Reads the weights of some layers, [in, out].
    """

    stage: Stage
    groups: tuple[Group, ...]
    undivided: tuple[str, ...]
    transposed: frozenset[str]
    read: Callable[[Sequence[str]], Weights]

    @classmethod
    def of(
        cls, bundle: Bundle, stage: Stage, parts: frozenset[str], options: SearchOptions
    ) -> StageLayers:
        """The layers of these parts of the network, see `linear_layers`."""
        graphs = (stage.graph, *stage.other_graphs.values())
        models = [ir.load(bundle.path(name)) for name in graphs]
        groups, *others = (find_groups(model, parts) for model in models)
        agreed = [
            group if all(group in other for other in others) else replace(group, fold=None)
            for group in groups
        ]
        block = options.block_size if options.precision == INT4 else 1
        initialisers = models[0].graph.initializers
        layers = linear_layers(models[0], parts)
        transposed = frozenset(layer.name for layer in layers if layer.transposed)

        def read(names: Sequence[str]) -> Weights:
            stored = {name: mapped(initialisers[name].const_value) for name in names}
            return {name: it.T if name in transposed else it for name, it in stored.items()}

        return cls(
            stage,
            tuple(group for group in agreed if group.channels % block == 0),
            tuple(name for it in agreed if it.channels % block for name in it.layers),
            transposed,
            read,
        )

    def choose(
        self,
        seen: Mapping[str, LayerInput],
        options: SearchOptions,
        done: Mapping[str, Choice],
        step: Callable[[Choice], None],
    ) -> tuple[Choice, ...]:
        """Decides for every group.

        Args:
            seen: Inputs, by the groups' first layers.
            options: What is searched for.
            done: Decisions that were made before, by the groups' first layers.
            step: Told each new decision.

        Raises:
            InputError: The samples never ran the stage.
        """
        choices = []
        for group in self.groups:
            choice = done.get(group.first)
            if choice is None:
                weights = self.read(group.layers)
                entered = _seen(seen, group)
                choice = search(self.stage.name, group, entered, list(weights.values()), options)
                step(choice)
            choices.append(choice)
        return tuple(choices)

    def forms(
        self,
        choices: Mapping[str, Choice],
        seen: Mapping[str, LayerInput],
        high_precision: frozenset[str],
        block_size: int,
    ) -> tuple[dict[str, Form], Migration]:
        """What is written for decisions, by the names of layers.

        Args:
            choices: By the groups' first layers.
            seen: Inputs, likewise.
            high_precision: Layers that stay as they are.
            block_size: Of INT4.

        Raises:
            InputError: A group has no decision, or one that does not fit it: a recipe for another
                bundle.
        """
        forms, migration = {}, Migration()
        for group in self.groups:
            choice = _fitting(choices.get(group.first), group)
            migration.add(choice, group, _seen(seen, group), self.read(group.layers))
            block = block_size if choice.precision == INT4 else 0
            for name in group.layers:
                if name not in high_precision:
                    feedback = choice.method == GPTQ
                    forms[name] = Form(
                        choice.precision,
                        choice.threshold,
                        block,
                        feedback,
                        transposed=name in self.transposed,
                    )
        return forms, migration


def _seen(seen: Mapping[str, LayerInput], group: Group) -> LayerInput:
    if group.first not in seen:
        raise InputError(
            f"nothing entered {group.first}",
            why="the samples never ran the stage that it is in.",
            fix="calibrate with samples that have images and questions.",
        )
    return seen[group.first]


def _fitting(choice: Choice | None, group: Group) -> Choice:
    if choice is None or choice.layers != group.layers:
        raise InputError(
            f"the recipe has no choice for {group.first}",
            why="it was written for another bundle, or for other parts of it.",
            fix="use a recipe of the same model and --parts, or leave --recipe away.",
        )
    if choice.alpha is not None and group.fold is None:
        raise InputError(
            f"the recipe has an alpha for {group.first}",
            why="nothing before that layer can be divided by a scale.",
            fix="set alpha to null there.",
        )
    return choice
