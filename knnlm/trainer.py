"""The loop of training: transformers' Trainer with our loss, optimizer and progress bar."""

import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    get_wsd_schedule,
)

from knnlm.device import reuse_memory
from knnlm.loss import cross_entropy
from knnlm.muon import Muon
from knnlm.progress import one_bar, progress
from knnlm.tokens import TokenStream, sliding_windows

VALIDATIONS = 6  # looks at the validation text while training …
VALIDATION_WINDOWS = 16  # … at so many windows each: a fraction of a second
CURVE = {  # names in training.json, and in the Trainer's log
    "step": "step",
    "tokens": "num_input_tokens_seen",
    "seconds": "seconds",
    "loss": "loss",
    "learning_rate": "learning_rate",
    "validation_loss": "validation_loss",
    "validation_bits_per_character": "validation_bits_per_character",
}


class _Trainer(Trainer):
    """Takes the loss from what the last layer gives, so that no logits are kept."""

    dtype = torch.float32

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        tokens = inputs["input_ids"]
        hidden = model(tokens, output_hidden_states=True, logits_to_keep=1).hidden_states[-1]
        weight = self.accelerator.unwrap_model(model).lm_head.weight
        given, following = hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        return cross_entropy(given, weight, following, self.dtype)


class _Watch(TrainerCallback):
    """Drives the progress bar, times the log, and looks at the validation text now and then."""

    def __init__(self, steps: int, context: int, validation: TokenStream | None):
        self.validation = validation
        self.every = max(1, steps // VALIDATIONS)
        if validation is not None:
            windows = sliding_windows(len(validation), context)
            self.windows = windows[1 :: len(windows) // VALIDATION_WINDOWS + 1] or windows

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        before = state.log_history[-1]["seconds"] if state.log_history else 0.0
        self.began = time.perf_counter() - before
        self.bar = progress(
            description="train", unit="steps", total=state.max_steps, done=state.global_step
        )

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.bar.update()
        if self.validation is not None and state.global_step % self.every == 0:
            row: dict[str, float] = {
                "step": state.global_step,
                "num_input_tokens_seen": state.num_input_tokens_seen,
            }
            row |= validation_row(self._loss(kwargs["model"], self.validation), self.validation)
            state.log_history.append(row | {"seconds": time.perf_counter() - self.began})

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        state.log_history[-1]["seconds"] = time.perf_counter() - self.began

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Keep the last checkpoint alone; the Trainer itself would warn where steps are quick."""
        for checkpoint in Path(args.output_dir).glob("checkpoint-*"):
            if checkpoint.name != f"checkpoint-{state.global_step}":
                shutil.rmtree(checkpoint)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.bar.close()

    @torch.no_grad()
    def _loss(self, model: GPT2LMHeadModel, validation: TokenStream) -> float:
        """Return nats per token over a few windows, far from one another."""
        total, count = 0.0, 0
        model.eval()
        for window in self.windows:
            ids = validation.tokens[window.start : window.stop + 1].astype(np.int64)
            tokens = torch.from_numpy(ids)[None].to(model.device)
            given = window.stop - window.first
            logits = model(tokens[:, :-1], logits_to_keep=given).logits
            total += torch.nn.functional.cross_entropy(
                logits[0].float(), tokens[0, -given:], reduction="sum"
            ).item()
            count += given
        model.train()
        return total / count


def validation_row(loss: float, stream: TokenStream) -> dict[str, float]:
    """Return nats per token, and bits per character, which compare across tokenizers."""
    bits = loss * (len(stream) - 1) / stream.characters / math.log(2)
    return {"validation_loss": loss, "validation_bits_per_character": bits}


def last_checkpoint(checkpoints: Path) -> Path | None:
    """Return the last checkpoint that was written to its end, where there is one."""
    states = checkpoints.glob("checkpoint-*/trainer_state.json")
    return max((s.parent for s in states), key=lambda c: int(c.name.split("-")[1]), default=None)


def run_trainer(
    model: GPT2LMHeadModel,
    stream: TokenStream,
    validation: TokenStream | None,
    checkpoints: Path,
    dtype: torch.dtype,
    *,
    context: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> TrainerState:
    """Train a model in place, from the last checkpoint on where there is one.

    Parameters
    ----------
    stream
        The text, cut into windows of ``context`` tokens.
    validation
        A stream to look at now and then.
    checkpoints
        Their folder.
    dtype
        The type to multiply in.

    Returns
    -------
    transformers.TrainerState
        Its ``log_history`` has a row for each log and each look, and a last one with all seconds.
    """
    reuse_memory()
    windows = torch.from_numpy(stream.tokens[: len(stream) // context * context].astype(np.int64))
    # bfloat16 where the model has it; float16 has not its range, and with it becomes float32
    optimizer = Muon(model, learning_rate, torch.promote_types(dtype, torch.bfloat16))
    schedule = get_wsd_schedule(
        optimizer,
        num_warmup_steps=min(20, steps // 10),
        num_decay_steps=round(0.7 * steps),
        num_training_steps=steps,
        decay_type="linear",
    )
    device = model.device.type
    trainer = _Trainer(
        model,
        TrainingArguments(
            output_dir=str(checkpoints),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            bf16=dtype == torch.bfloat16,
            fp16=dtype == torch.float16,
            use_cpu=device == "cpu",
            seed=seed,
            logging_steps=max(1, steps // 80),
            save_steps=max(1, steps // 8),
            include_num_input_tokens_seen="all",
            dataloader_pin_memory=device == "cuda",
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=[{"input_ids": w, "labels": w} for w in windows.view(-1, context)],
        optimizers=(optimizer, schedule),
        callbacks=[_Watch(steps, context, validation)],
    )
    trainer.dtype = dtype
    trainer.remove_callback(PrinterCallback)
    last = last_checkpoint(checkpoints)
    with one_bar():
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    return trainer.state
