"""Which weights learn, how fast, and what they are called in a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save
from torch import Tensor, nn

from atp_models.training.options import TrainingOptions
from atp_models.training.soft_decoder import SoftDecoder

PROJECTOR_FILE = "projector.safetensors"
_LINEARS = r"(.*\.)?language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
_PREFIX = "llava."
_PROJECTOR = "llava.model.multi_modal_projector."
_EMBEDDING = "model.language_model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_ADAPTER = "default"


class TrainedParts:
    """Freezes and adapts a network for one of the modes.

    Args:
        decoder: Changed in place: gradients are switched on or off, adapters put in.
        options: Tell the mode.
    """

    def __init__(self, decoder: SoftDecoder, options: TrainingOptions) -> None:
        llava: Any = decoder.llava
        self._decoder = decoder
        self._options = options
        self._peft: PeftModel | None = None
        self._tied = llava.lm_head.weight is llava.get_input_embeddings().weight
        llava.requires_grad_(False)
        if options.mode == "lora":
            rank = options.lora_rank
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_LINEARS)
            with warnings.catch_warnings():
                # PEFT asks Transformers for something under its former name.
                warnings.simplefilter("ignore", FutureWarning)
                self._peft = get_peft_model(llava, config)
        if options.mode == "full":
            llava.model.language_model.requires_grad_(True).float()
            llava.lm_head.requires_grad_(True).float()
        if options.mode != "modules":
            llava.model.multi_modal_projector.requires_grad_(True).float()
        if decoder.atp is not None and options.freeze_modules:
            decoder.atp.requires_grad_(False)
            self._freeze_what_modules_read(decoder.atp.config.layers)

    @property
    def modules_learn(self) -> bool:
        """Whether there are ATP modules, and they learn."""
        return self._decoder.atp is not None and not self._options.freeze_modules

    def names(self) -> list[str]:
        """Names of the weights that learn, as `SoftDecoder` has them."""
        return [name for name, value in self._decoder.named_parameters() if value.requires_grad]

    def groups(self, model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser.

        Args:
            model: The decoder, or what is wrapped around it.
            weight_decay: Of matrices of decoder, adapter and projector; the others have none.
        """
        rates = {"modules": self._options.modules_learning_rate, "rest": self._learning_rate()}
        groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                part = "modules" if "atp.points." in name else "rest"
                decays = part == "rest" and parameter.ndim > 1
                groups.setdefault((part, decays), []).append(parameter)
        return [
            {"params": held, "lr": rates[part], "weight_decay": weight_decay if decays else 0.0}
            for (part, decays), held in groups.items()
        ]

    def checkpoint_tensors(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The changed tensors of the LLaVA, by canonical name, adapters merged.

        Args:
            state: Of the whole decoder.
        """
        changed: dict[str, Tensor] = {}
        for name in self.names():
            if not name.startswith(_PREFIX) or ".lora_B." in name:
                continue
            if ".lora_A." in name:
                layer = name[: name.index(".lora_A.")]
                changed[_canonical(f"{layer}.weight")] = self._merged(layer, state)
            else:
                changed[_canonical(name)] = state[name]
        if self._tied and _EMBEDDING in changed:
            changed[_HEAD] = changed[_EMBEDDING]
        return changed

    def save_adapter(self, directory: Path, state: Mapping[str, Tensor]) -> None:
        """Writes the adapter as PEFT loads it, and the projector beside it; nothing without one.

        Args:
            directory: Made if absent.
            state: Of the whole decoder.
        """
        if self._peft is None:
            return
        prefixed = {
            "base_model.model." + name.removeprefix(_PREFIX): value
            for name, value in state.items()
            if name.startswith(_PREFIX)
        }
        self._peft.save_pretrained(str(directory), state_dict=prefixed, save_embedding_layers=False)
        (directory / "README.md").unlink(missing_ok=True)  # a form that nobody filled in
        projector = {
            name.removeprefix(_PROJECTOR): value.detach().cpu().contiguous()
            for name, value in state.items()
            if name.startswith(_PROJECTOR)
        }
        # Not save_file: its files are readable to their owner alone.
        (directory / PROJECTOR_FILE).write_bytes(save(projector))

    def _freeze_what_modules_read(self, points: Sequence[int]) -> None:
        """Thresholds fit the scores that they were made for: those may not move under them.

        A few dozen steps that moved them made the demo's first point keep 45 tokens for 145.
        """
        llava: Any = self._decoder.llava
        llava.model.multi_modal_projector.requires_grad_(False)
        llava.get_input_embeddings().requires_grad_(False)
        layers = llava.model.language_model.layers
        for layer in layers[: points[0]]:
            layer.requires_grad_(False)
        for point in points:
            for projection in ("q_proj", "k_proj"):
                layers[point - 1].self_attn.get_submodule(projection).requires_grad_(False)

    def _learning_rate(self) -> float:
        if self._options.learning_rate is not None:
            return self._options.learning_rate
        return 2e-5 if self._options.mode == "full" else 2e-4

    def _merged(self, layer: str, state: Mapping[str, Tensor]) -> Tensor:
        scaling = self._decoder.get_submodule(layer).scaling[_ADAPTER]  # type: ignore[index]
        down, up = (state[f"{layer}.lora_{part}.{_ADAPTER}.weight"].float() for part in "AB")
        whole: Tensor = state[f"{layer}.base_layer.weight"].float() + scaling * (up @ down)
        return whole


def _canonical(name: str) -> str:
    return name.removeprefix(_PREFIX)
