"""Training a small GPT-2-shaped language model from scratch, in minutes on a processor."""

import copy
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, set_seed

from knnlm.arrays import crc32
from knnlm.artifacts import Claim, claim, is_complete
from knnlm.device import choose_device, choose_precision
from knnlm.errors import InputError
from knnlm.language_model import LanguageModel, Reading
from knnlm.progress import one_bar
from knnlm.text import Split
from knnlm.tokens import TokenStream, train_tokenizer
from knnlm.trainer import CURVE, last_checkpoint, run_trainer, validation_row

CHECKED = ("model.safetensors", "tokenizer.json")  # whose bytes are known; the others one may edit
RUN = ("context", "steps", "batch_size", "learning_rate", "seed")  # settings of the loop


def _new_model(tokenizer: PreTrainedTokenizerBase, settings: dict[str, int]) -> GPT2LMHeadModel:
    """Return a GPT-2-shaped model with weights drawn anew."""
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=settings["context"],
            n_embd=settings["width"],
            n_layer=settings["layers"],
            n_head=settings["heads"],
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


def _check_folder(out: Path, resume: bool) -> None:
    """Refuse a finished model, and to go on, or to start, without having been told to."""
    if is_complete(out, "training"):
        raise InputError(f"{out} holds a finished model. Choose a new folder, or remove this one.")
    if resume and not (out / "training.json").exists():
        raise InputError(f"{out} holds no interrupted training. Start one without resume.")
    if not resume and last_checkpoint(out / "checkpoints"):
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
    when training is done; until then the folder holds its settings and ``checkpoints``.

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
    out = Path(out)
    on = choose_device(device)
    dtype = choose_precision(precision, on)
    if width % heads:
        raise InputError(
            f"A width of {width} is no multiple of {heads} heads. Choose one that they can share."
        )
    if start is not None:
        config = _config_of(start)
        layers, width, heads = config.n_layer, config.n_embd, config.n_head
        context, vocab_size, alphabet = start.context, start.vocab_size, "of the model begun with"
    settings = {
        "text": text.name,
        "text_fingerprint": text.fingerprint,
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
        "device": on.type,
        "seed": seed,
        "start": start.fingerprint if start else None,
    }
    _check_folder(out, resume)
    with claim(out, "training", {"settings": settings}, ("checkpoints",)) as made:
        _learn(made, text, validation, start, on, dtype)
    return out


def _learn(
    made: Claim,
    text: Split,
    validation: Split | None,
    start: LanguageModel | None,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Train what the claim's settings describe, and write it into its folder."""
    chosen = made.record["settings"]
    tokenizer = (
        start.tokenizer
        if start
        else train_tokenizer(text, chosen["vocab_size"], chosen["alphabet"])
    )
    stream = TokenStream.encode(text, tokenizer)
    if len(stream) < chosen["context"]:
        raise InputError(
            f"{text.name} has {len(stream)} tokens, less than one context of {chosen['context']}. "
            "Give more text, or choose a smaller context."
        )
    held_out = TokenStream.encode(validation, tokenizer) if validation else None
    set_seed(chosen["seed"])
    model = copy.deepcopy(start.model) if start else _new_model(tokenizer, chosen)
    state = run_trainer(
        model.to(device),  # type: ignore[arg-type]
        stream,
        held_out,
        made.folder / "checkpoints",
        dtype,
        **{name: chosen[name] for name in RUN},
    )
    if not all(weight.isfinite().all() for weight in model.parameters()):
        made.discard()
        raise InputError(
            "The training diverged: weights are not finite at a learning rate of "
            f"{chosen['learning_rate']}. Choose a smaller one."
        )
    lm = LanguageModel(model, tokenizer, made.folder.name, device, chosen["precision"])
    *curve, end = state.log_history
    made.record.update(
        model=lm.fingerprint,
        seconds=end["seconds"],
        parameters=model.num_parameters(),
        tokens=state.num_input_tokens_seen,
    )
    if held_out:
        made.record.update(validation_row(_loss(lm, held_out), held_out))
    made.record["curve"] = [
        {name: row[key] for name, key in CURVE.items() if key in row} for row in curve
    ]
    _write(made, lm)


def _config_of(start: LanguageModel) -> GPT2Config:
    config = start.model.config
    if not isinstance(config, GPT2Config) or config.model_type != "gpt2":
        raise InputError(
            f"{start.name} is of the architecture {config.model_type}, and only GPT-2's can be "
            "fine-tuned here. Train it with transformers.Trainer, and give its folder as model."
        )
    return config


def _loss(lm: LanguageModel, stream: TokenStream) -> float:
    """Return nats per token over all of a text."""

    def total(reading: Reading) -> float:
        assert reading.log_probs is not None  # they are asked for
        return float(reading.log_probs.sum(dtype=np.float64))

    readings = lm.read(stream, key_layers=(), log_probs=True)
    return -sum(map(total, readings)) / (len(stream) - 1)


def _write(made: Claim, lm: LanguageModel) -> None:
    """Move the finished files into place, ``config.json`` last, and remove the checkpoints."""
    checkpoints = made.folder / "checkpoints"
    finished = checkpoints / "finished"
    with one_bar():
        lm.model.save_pretrained(finished)
    lm.tokenizer.save_pretrained(finished)
    there = [name for name in CHECKED if (finished / name).exists()]
    made.record["crc32"] = {name: crc32(finished / name) for name in there}
    for file in sorted(finished.iterdir(), key=lambda file: file.name == "config.json"):
        os.replace(file, made.folder / file.name)
    made.complete()
    shutil.rmtree(checkpoints)
