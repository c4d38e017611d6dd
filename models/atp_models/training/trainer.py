"""Transformers' `Trainer`, taught the loss of ATP modules.

Mixed precision, gradient accumulation, several processes, sharding, checkpoints and resuming are
its own. Here: the loss and the temperature's schedule, learning rates by part, what is logged, an
evaluation that drops tokens as inference does, and checkpoints that hold only what learns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerControl, TrainingArguments

from atp_models.training.dataset import Collator, ConversationDataset
from atp_models.training.evaluation import Scores, join_results, row_results
from atp_models.training.packing import thin_batch
from atp_models.training.rows import UNSUPERVISED, batch_from
from atp_models.training.soft_decoder import SoftDecoder
from atp_models.training.soft_state import SoftOutput
from atp_models.training.trained_parts import TrainedParts
from atp_runtime.errors import CheckFailedError

WEIGHTS = "model.safetensors"


class AtpTrainer(Trainer):  # type: ignore[misc]
    """Trains a `SoftDecoder`.

    A loss that is not finite ends the training with a `CheckFailedError`.

    Args:
        decoder: Its weights frozen, or not, by `parts`.
        parts: Which weights learn.
        arguments: Of Transformers.
        train: What is learnt.
        validation: What is evaluated; None evaluates nothing.
        collator: For both.
        visual_tokens_stride: See `DataOptions`.
        unpruned: See `TrainingOptions`.

    Attributes:
        pruning: What is trained for; None without pruning.
    """

    # The language loss is divided by the tokens of all accumulated batches, the rest by their
    # number.
    loss_is_scaled_for_ga = True
    control: TrainerControl
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        decoder: SoftDecoder,
        parts: TrainedParts,
        arguments: TrainingArguments,
        *,
        train: ConversationDataset | None,
        validation: ConversationDataset | None,
        collator: Collator,
        visual_tokens_stride: tuple[int, ...] = (1,),
        unpruned: float = 0.0,
    ) -> None:
        self._parts = parts
        self._decoder = decoder
        self._strides = visual_tokens_stride
        self._unpruned = unpruned
        self.pruning = None if decoder.atp is None else decoder.atp.config
        self._noted: list[Tensor] = []
        self._last_temperature = math.inf
        super().__init__(
            model=decoder,
            args=arguments,
            train_dataset=train,
            eval_dataset=validation,
            data_collator=collator,
        )
        self.remove_callback(PrinterCallback)

    def temperature(self) -> float:
        """T at this step: from temperature_start to temperature_end by equal factors.

        Infinite where no module learns, so that tokens are dropped as they are at inference.
        """
        if self.pruning is None or not self._parts.modules_learn:
            return math.inf
        first, last = self.pruning.temperature_start, self.pruning.temperature_end
        end = max(1, int(self.state.max_steps) - 1)
        return float(first * (last / first) ** (min(self.state.global_step, end) / end))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch; see `Trainer.compute_loss`."""
        batch = batch_from(inputs)
        if self._strides != (1,):
            batch = thin_batch(batch, self._decoder.grid, *self._grids(inputs["numbers"]))
        self._last_temperature = self.temperature()
        prune = not self._keeps_all(inputs["numbers"])
        output: SoftOutput = model(batch, self._last_temperature, prune=prune)
        if prune:
            self._note(output)
        loss = output.loss
        if num_items_in_batch is not None:
            learnt = len(output.targets) * self.accelerator.num_processes / num_items_in_batch
            budget = (output.loss - output.lm_loss) / self.current_gradient_accumulation_steps
            loss = output.lm_loss * learnt + budget
        return (loss, output) if return_outputs else loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The batches of one optimiser step, and the supervised tokens in them on all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        counts = [(batch["targets"] != UNSUPERVISED).sum() for batch in batches]
        total = torch.stack(counts).sum().to(device)
        return batches, self.accelerator.reduce(total, "sum").clamp_min(1)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimiser of the arguments, with a learning rate for each part."""
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = self._parts.groups(model or self.model, weight_decay=self.args.weight_decay)
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def scores(self, dataset: ConversationDataset, *, prune: bool = True) -> Scores:
        """Runs a dataset as inference would.

        Args:
            dataset: One record a row.
            prune: Whether pruning points prune.
        """
        model = self.model
        model.eval()
        results = []
        for inputs in self.get_eval_dataloader(dataset):
            batch = batch_from(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                output = model(batch, math.inf, prune=prune)
            own = row_results(
                output, batch.targets, inputs["answers"], inputs["numbers"], batch.images
            )
            results.append(self.accelerator.gather(own))
        return join_results(torch.cat(results), [group[0] for group in dataset.groups])

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,  # noqa: ARG002 - the signature is the Trainer's
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """`scores` of the validation, logged."""
        scores = self.scores(eval_dataset or self.eval_dataset)
        metrics = {
            "loss": scores.loss,
            "token_accuracy": scores.token_accuracy,
            "answer_accuracy": scores.answer_accuracy,
            "mean_tokens": scores.mean_tokens,
        }
        metrics |= {f"kept_{point}": count for point, count in enumerate(scores.kept)}
        metrics |= {f"kind_{kind}": score.accuracy for kind, score in scores.kinds.items()}
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(named)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        return named

    def whole_state(self) -> dict[str, Tensor]:
        """Every tensor of the network, gathered where it is sharded; empty on other processes."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            gathered: dict[str, Tensor] = self.accelerator.get_state_dict(self.model_wrapped)
            return gathered
        state: dict[str, Tensor] = self.accelerator.unwrap_model(self.model).state_dict()
        return state

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the parts of the loss and the kept tokens since the last log; see `Trainer.log`."""
        if "loss" in logs and self._noted:
            noted = self.accelerator.gather(torch.stack(self._noted).mean(0, keepdim=True)).mean(0)
            self._noted.clear()
            self._check_finite(noted)
            names = ["lm_loss", "atp_loss", "target_loss", "mean_tokens"]
            names += [f"kept_{point}" for point in range(len(noted) - len(names))]
            logs |= dict(zip(names, noted.tolist(), strict=True))
            if math.isfinite(self._last_temperature):
                logs["temperature"] = self._last_temperature
        super().log(logs, start_time)

    def _check_finite(self, noted: Tensor) -> None:
        if not bool(noted.isfinite().all()):
            raise CheckFailedError(
                f"the loss is not finite at step {self.state.global_step}",
                why="the weights are lost from there on.",
                fix="lower --learning-rate, or train in float32; the last checkpoint is kept.",
            )

    def _note(self, output: SoftOutput) -> None:
        seen = output.images > 0
        images = output.images.sum().clamp_min(1)
        mean = output.mean_tokens[seen].sum() / seen.sum().clamp_min(1)
        parts = [output.lm_loss, output.atp_loss, output.target_loss, mean]
        parts += list(output.counts.sum(1) / images)
        self._noted.append(torch.stack([part.detach().float() for part in parts]))

    def _keeps_all(self, numbers: Tensor) -> bool:
        """Whether this batch is one of those from which no token is dropped; drawn each step."""
        if not self._unpruned:
            return False
        generator = self._generator(int(numbers[0]))
        return bool(torch.rand(1, generator=generator) < self._unpruned)

    def _generator(self, number: int) -> torch.Generator:
        """Of what is drawn anew each step for a row."""
        seed = hash((self.args.seed, self.state.global_step, number)) % 2**63
        return torch.Generator().manual_seed(seed)

    def _grids(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Stride of each row's grid, int64 [batch], and where it begins, int64 [batch, 2].

        They are drawn anew each step.
        """
        strides, offsets = [], []
        for number in numbers.tolist():
            generator = self._generator(number)
            drawn = int(torch.randint(len(self._strides), (1,), generator=generator))
            strides.append(self._strides[drawn])
            offsets.append(torch.randint(strides[-1], (2,), generator=generator))
        return torch.tensor(strides, device=numbers.device), torch.stack(offsets).to(numbers.device)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        if not self.args.should_save:
            return
        directory = Path(output_dir or self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        state = dict(self.model.named_parameters()) if state_dict is None else state_dict
        learnt = {name: state[name].detach().cpu().contiguous() for name in self._parts.names()}
        save_file(learnt, directory / WEIGHTS)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in load_file(Path(resume_from_checkpoint) / WEIGHTS).items():
                parameters[name].copy_(value)
