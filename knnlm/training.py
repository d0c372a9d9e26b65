"""Training a small GPT-2-shaped language model from scratch, in minutes on a processor."""

import copy
import json
import math
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_wsd_schedule,
    set_seed,
)

from knnlm.device import choose_device, choose_precision, reuse_memory
from knnlm.errors import InputError
from knnlm.language_model import LanguageModel
from knnlm.loss import cross_entropy
from knnlm.muon import Muon
from knnlm.progress import one_bar, progress
from knnlm.text import Split
from knnlm.tokens import TokenStream, sliding_windows, train_tokenizer

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


def _new_model(tokenizer: PreTrainedTokenizerBase, shape: dict[str, int]) -> GPT2LMHeadModel:
    """Return a GPT-2-shaped model with weights drawn anew."""
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            **shape,
            activation_function="relu",  # a tenth faster than GPT-2's gelu_new
            embd_pdrop=0.0,  # hardly any window is read twice
            resid_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    _initialize_embeddings(model)
    return model


@torch.no_grad()
def _initialize_embeddings(model: GPT2LMHeadModel) -> None:
    """Set out from embeddings that make the most of little text.

    Positions start as sinusoids (Vaswani et al. 2017, section 3.5), by which near ones are alike,
    so that what is learned at one holds at the next. Tokens start five times as large as GPT-2's:
    with its 0.02, the loss falls more slowly for the first few hundred steps.
    """
    positions, width = model.transformer.wpe.weight.shape
    frequencies = 10_000 ** -torch.linspace(0, 1, (width + 1) // 2)
    angles = torch.arange(positions)[:, None] * frequencies
    model.transformer.wpe.weight.copy_(0.2 * torch.cat([angles.sin(), angles.cos()], 1)[:, :width])
    model.transformer.wte.weight.normal_(std=0.1)


class _Trainer(Trainer):
    """Takes the loss from what the last layer gives, so that no logits are kept."""

    dtype = torch.float32

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
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

    def on_train_begin(self, args, state, control, **kwargs):
        before = state.log_history[-1]["seconds"] if state.log_history else 0.0
        self.began = time.perf_counter() - before
        self.bar = progress(
            description="train", unit="steps", total=state.max_steps, done=state.global_step
        )

    def on_step_end(self, args, state, control, model, **kwargs):
        self.bar.update()
        if self.validation is not None and state.global_step % self.every == 0:
            row = {"step": state.global_step, "num_input_tokens_seen": state.num_input_tokens_seen}
            row |= _validation_row(self._loss(model), self.validation)
            state.log_history.append(row | {"seconds": time.perf_counter() - self.began})

    def on_log(self, args, state, control, **kwargs):
        state.log_history[-1]["seconds"] = time.perf_counter() - self.began

    def on_save(self, args, state, control, **kwargs):
        """Keep the last checkpoint alone; the Trainer itself would warn where steps are quick."""
        for checkpoint in Path(args.output_dir).glob("checkpoint-*"):
            if checkpoint.name != f"checkpoint-{state.global_step}":
                shutil.rmtree(checkpoint)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()

    @torch.no_grad()
    def _loss(self, model: GPT2LMHeadModel) -> float:
        """Return nats per token over a few windows, far from one another."""
        total = count = 0
        model.eval()
        for window in self.windows:
            tokens = self.validation.tokens[window.start : window.stop + 1].astype(np.int64)
            tokens = torch.from_numpy(tokens)[None].to(model.device)
            given = window.stop - window.first
            logits = model(tokens[:, :-1], logits_to_keep=given).logits
            total += torch.nn.functional.cross_entropy(
                logits[0].float(), tokens[0, -given:], reduction="sum"
            ).item()
            count += given
        model.train()
        return total / count


def _validation_row(loss: float, stream: TokenStream) -> dict[str, float]:
    """Return nats per token, and bits per character, which compare across tokenizers."""
    bits = loss * (len(stream) - 1) / stream.characters / math.log(2)
    return {"validation_loss": loss, "validation_bits_per_character": bits}


def _last_checkpoint(out: Path) -> Path | None:
    """Return the last checkpoint that was written to its end, where there is one."""
    states = (out / "checkpoints").glob("checkpoint-*/trainer_state.json")
    return max((s.parent for s in states), key=lambda c: int(c.name.split("-")[1]), default=None)


def _check_folder(out: Path, resume: bool) -> None:
    """Refuse a folder that holds anything but an interrupted training to be resumed."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file. Choose a new folder for the model.")
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    if "config.json" in names:
        raise InputError(f"{out} holds a finished model. Choose a new folder, or remove this one.")
    if foreign := names - {"checkpoints"}:
        raise InputError(f"{out} holds something else: {min(foreign)}. Choose a new folder.")
    if resume and not (out / "checkpoints" / "settings.json").exists():
        raise InputError(f"{out} holds no interrupted training. Start one without resume.")
    if not resume and _last_checkpoint(out):
        raise InputError(
            f"{out} holds an interrupted training. Go on with resume, or remove the folder."
        )


def train_language_model(
    text: Split,
    out: str | Path,
    *,
    validation: Split | None = None,
    layers: int = 4,
    width: int = 256,
    heads: int = 4,
    context: int = 256,
    vocab_size: int = 4096,
    alphabet: str = "bytes",
    steps: int = 650,
    batch_size: int = 8,
    learning_rate: float = 8e-3,
    precision: str = "auto",
    device: str = "auto",
    seed: int = 0,
    resume: bool = False,
    start: LanguageModel | None = None,
) -> Path:
    """Train a tokenizer and a GPT-2-shaped model on ``text``; write both to the folder ``out``.

    With ``start``, go on from that model instead: fine-tuning.

    The folder is what ``save_pretrained`` writes, so the Auto classes load it. ``training.json``
    beside the model holds ``settings``, ``seconds``, ``tokens``, ``parameters`` and ``curve``: rows
    of ``step``, ``tokens``, ``seconds``, and either ``loss`` and ``learning_rate`` or
    ``validation_loss`` (nats per token) and ``validation_bits_per_character``. The model appears
    when training is done; until then the folder holds ``checkpoints`` alone.

    Parameters
    ----------
    text
        The documents to learn from; the defaults suit about five million characters.
    out
        A new or empty folder.
    validation
        Other documents, to follow progress: a few windows while training, all of them afterwards.
    layers, width, heads, context
        The model's shape; ``context`` is in tokens.
    vocab_size, alphabet
        See :func:`~knnlm.tokens.train_tokenizer`.
    steps, batch_size, learning_rate
        Updates, windows of ``context`` tokens an update, and the highest learning rate.
    precision, device
        See :func:`~knnlm.device.choose_precision` and ``choose_device`` there.
    seed
        Equal seeds on one machine give equal models.
    resume
        Go on where a run with the same settings was interrupted.
    start
        A GPT-2-shaped model whose tokenizer, shape and weights to begin with; it is left as it is.
        What else describes the shape or the vocabulary is then not used.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        When ``out`` holds something else, there is nothing to resume or its settings differ, the
        heads do not share the width evenly, the text is shorter than one context, or ``start`` has
        another architecture.
    """
    out, checkpoints = Path(out), Path(out) / "checkpoints"
    device = choose_device(device)
    dtype = choose_precision(precision, device)
    if width % heads:
        raise InputError(
            f"A width of {width} is no multiple of {heads} heads. Choose one that they can share."
        )
    if start is not None:
        config = start.model.config
        if config.model_type != "gpt2":
            raise InputError(
                f"{start.name} is of the architecture {config.model_type}, and only GPT-2's can be "
                "fine-tuned here. Train it with transformers.Trainer, and give its folder as model."
            )
        layers, width, heads = config.n_layer, config.n_embd, config.n_head
        context, vocab_size, alphabet = start.context, start.vocab_size, "of the model begun with"
    _check_folder(out, resume)
    tokenizer = start.tokenizer if start else train_tokenizer(text, vocab_size, alphabet)
    stream = TokenStream.encode(text, tokenizer)
    if len(stream) < context:
        raise InputError(
            f"{text.name} has {len(stream)} tokens, less than one context of {context}. "
            "Give more text, or choose a smaller context."
        )
    settings = {
        "text": text.name,
        "text_fingerprint": stream.fingerprint,
        "layers": layers,
        "width": width,
        "heads": heads,
        "context": context,
        "vocab_size": vocab_size,
        "alphabet": alphabet,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "precision": str(dtype).removeprefix("torch."),
        "device": device.type,
        "seed": seed,
        "start": start.fingerprint if start else None,
    }
    if resume:
        before = json.loads((checkpoints / "settings.json").read_text())
        for name in settings:
            if settings[name] != before.get(name):
                raise InputError(
                    f"The interrupted training in {out} has {name} {before.get(name)}, not "
                    f"{settings[name]}. Resume with the same settings, or choose a new folder."
                )
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / "settings.json").write_text(json.dumps(settings, indent=2))

    windows = torch.from_numpy(stream.tokens[: len(stream) // context * context].astype(np.int64))
    held_out = TokenStream.encode(validation, tokenizer) if validation else None
    set_seed(seed)
    shape = {"n_positions": context, "n_embd": width, "n_layer": layers, "n_head": heads}
    model = copy.deepcopy(start.model) if start else _new_model(tokenizer, shape)
    reuse_memory()
    # bfloat16 where the model has it; float16 has not its range, and with it becomes float32
    optimizer = Muon(model, learning_rate, torch.promote_types(dtype, torch.bfloat16))
    schedule = get_wsd_schedule(
        optimizer,
        num_warmup_steps=min(20, steps // 10),
        num_decay_steps=round(0.7 * steps),
        num_training_steps=steps,
        decay_type="linear",
    )
    watch = _Watch(steps, context, held_out)
    trainer = _Trainer(
        model,
        TrainingArguments(
            output_dir=str(checkpoints),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            bf16=dtype == torch.bfloat16,
            fp16=dtype == torch.float16,
            use_cpu=device.type == "cpu",
            seed=seed,
            logging_steps=max(1, steps // 80),
            save_steps=max(1, steps // 8),
            include_num_input_tokens_seen="all",
            dataloader_pin_memory=device.type == "cuda",
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=[{"input_ids": w, "labels": w} for w in windows.view(-1, context)],
        optimizers=(optimizer, schedule),
        callbacks=[watch],
    )
    trainer.dtype = dtype
    trainer.remove_callback(PrinterCallback)
    with one_bar():
        trainer.train(resume_from_checkpoint=_last_checkpoint(out))

    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise InputError(
            f"The training diverged: weights are not finite at a learning rate of {learning_rate}. "
            f"Choose a smaller one, and remove {out}."
        )
    lm = LanguageModel(model, tokenizer, out.name, str(device), precision)
    *curve, end = trainer.state.log_history
    record = {
        "settings": settings,
        "model": lm.fingerprint,
        "seconds": end["seconds"],
        "parameters": model.num_parameters(),
        "tokens": trainer.state.num_input_tokens_seen,
    }
    if held_out:
        readings = lm.read(held_out, key_layers=(), log_probs=True)
        total = sum(float(reading.log_probs.sum(dtype=np.float64)) for reading in readings)
        record |= _validation_row(-total / (len(held_out) - 1), held_out)
    record["curve"] = [
        {name: row[key] for name, key in CURVE.items() if key in row} for row in curve
    ]
    _write(out, lm, record)
    return out


def _write(out: Path, lm: LanguageModel, record: dict) -> None:
    """Move the finished files into ``out``, ``config.json`` last, and remove the checkpoints."""
    finished = out / "checkpoints" / "finished"
    with one_bar():
        lm.model.save_pretrained(finished)
    lm.tokenizer.save_pretrained(finished)
    (finished / "training.json").write_text(json.dumps(record, indent=2))
    for file in sorted(finished.iterdir(), key=lambda file: file.name == "config.json"):
        os.replace(file, out / file.name)
    shutil.rmtree(out / "checkpoints")
