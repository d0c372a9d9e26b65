"""Any Hugging Face causal LM, seen as: windows in; keys and log-probabilities out."""

import ctypes
import hashlib
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from knnlm.errors import InputError
from knnlm.progress import one_bar
from knnlm.tokens import TokenStream, Window, sliding_windows, tokenizer_fingerprint

# Besides the weights, what of a configuration decides what a model computes.
COMPUTES = (
    "num_attention_heads",
    "num_key_value_heads",
    "activation_function",
    "hidden_act",
    "layer_norm_epsilon",
    "layer_norm_eps",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
)
TOKENS_PER_BATCH = 4096
LOGITS_PER_BATCH = 1 << 25  # 128 MiB of float32


class KeyLayer(StrEnum):
    """Which vector of a block is the key: the rows of the paper's table 5, for pre-norm blocks."""

    FFN_INPUT = "ffn_input"
    """The feed-forward layer's input, after its layer norm: the paper's choice."""
    FFN_INPUT_BEFORE_NORM = "ffn_input_before_norm"
    ATTENTION_INPUT = "attention_input"
    ATTENTION_INPUT_BEFORE_NORM = "attention_input_before_norm"
    BLOCK_OUTPUT = "block_output"
    FINAL_NORM_OUTPUT = "final_norm_output"


class _Names(NamedTuple):
    """What an architecture calls the modules that the keys are read from."""

    blocks: str
    final_norm: str
    attention_norm: str
    ffn_norm: str


_LLAMA = _Names("model.layers", "model.norm", "input_layernorm", "post_attention_layernorm")
_GEMMA = _LLAMA._replace(ffn_norm="pre_feedforward_layernorm")
_GPT2 = _Names("transformer.h", "transformer.ln_f", "ln_1", "ln_2")
ARCHITECTURES = {
    "gpt2": _GPT2,
    "gpt_neo": _GPT2,
    "gpt_neox": _Names(
        "gpt_neox.layers",
        "gpt_neox.final_layer_norm",
        "input_layernorm",
        "post_attention_layernorm",
    ),
    "opt": _Names(
        "model.decoder.layers",
        "model.decoder.final_layer_norm",
        "self_attn_layer_norm",
        "final_layer_norm",
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
}


def find_module(model: PreTrainedModel, key_layer: str) -> tuple[torch.nn.Module, str]:
    """Return the module that a key is read from, and whether it is its ``"input"`` or ``"output"``.

    Parameters
    ----------
    key_layer
        A :class:`KeyLayer` (of the last block); with ``@3`` behind it, of block 3, counted from 0,
        or from the end with ``@-2``; or ``input:PATH`` or ``output:PATH`` with any module's path,
        for architectures that are not in the table, e.g. ``input:transformer.h.11.mlp``.

    Raises
    ------
    InputError
        When the architecture or the module is unknown.
    """
    side, colon, path = key_layer.partition(":")
    if colon and side in ("input", "output"):
        try:
            return model.get_submodule(path), side
        except AttributeError as error:
            raise InputError(
                f"{type(model).__name__} has no module {path!r}. "
                "See model.named_modules() for the paths."
            ) from error
    kind, _, number = str(key_layer).partition("@")
    if kind not in set(KeyLayer):
        raise InputError(
            f"There is no key layer {kind!r}. Use one of {', '.join(KeyLayer)}, "
            "or input:PATH or output:PATH of a module."
        )
    names = ARCHITECTURES.get(model.config.model_type)
    post_norm = getattr(model.config, "do_layer_norm_before", True) is False
    if names is None or post_norm:
        known = "a post-norm" if post_norm else "an unknown"
        raise InputError(
            f"{model.config.model_type} is {known} architecture here "
            f"(known: {', '.join(ARCHITECTURES)}). Name the module whose input or output is the "
            "key, e.g. key_layer='input:transformer.h.11.mlp'; see model.named_modules()."
        )
    if kind == KeyLayer.FINAL_NORM_OUTPUT:
        return model.get_submodule(names.final_norm), "output"
    blocks = model.get_submodule(names.blocks)
    try:
        block = blocks[int(number) if number else -1]
    except (IndexError, ValueError) as error:
        raise InputError(
            f"{key_layer!r} names block {number!r} of {len(blocks)}. "
            f"Count from 0 to {len(blocks) - 1}."
        ) from error
    if kind == KeyLayer.BLOCK_OUTPUT:
        return block, "output"
    norm = names.ffn_norm if kind.startswith("ffn") else names.attention_norm
    return block.get_submodule(norm), "input" if kind.endswith("before_norm") else "output"


class _Enough(Exception):
    """Ends a forward pass once the last tap has been read."""


@contextmanager
def tap(model: PreTrainedModel, key_layers: Iterable[str], stop: bool = False):
    """Collect vectors while the model runs: yields a dict that each forward pass fills anew.

    Parameters
    ----------
    key_layers
        What to collect, see :func:`find_module`.
    stop
        End the pass (by an exception that the caller catches) once all are there.
    """
    captured: dict[str, torch.Tensor] = {}
    layers = list(key_layers)
    handles = []

    def take(layer: str, value) -> None:
        captured[layer] = value[0] if isinstance(value, tuple) else value
        if stop and len(captured) == len(layers):
            raise _Enough

    for layer in layers:
        module, side = find_module(model, layer)
        if side == "output":
            hook = module.register_forward_hook(lambda m, i, out, layer=layer: take(layer, out))
        else:
            hook = module.register_forward_pre_hook(
                lambda m, args, kwargs, layer=layer: take(
                    layer, args[0] if args else kwargs["hidden_states"]
                ),
                with_kwargs=True,
            )
        handles.append(hook)
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def reuse_memory() -> None:
    """Keep freed memory for the next batch instead of giving it back to the system.

    A batch needs the same large arrays as the one before it. Asking the system for fresh pages
    each time took a quarter of the time of training. Only the GNU C library can be told so.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        for parameter, size in ((-3, 1 << 28), (-1, 1 << 30), (-2, 1 << 26)):
            libc.mallopt(parameter, size)  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD


def choose_device(device: str = "auto") -> torch.device:
    """Return the device to compute on: with ``"auto"`` a GPU where there is one."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(str(device).split(":")[0], False):
        raise InputError(f"There is no device {device!r} here. Use auto, or cpu.")
    return torch.device(device)


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the type to multiply in: with ``"auto"`` bfloat16 where the hardware does, or float32.

    bfloat16 is several times faster on processors with AMX, and hundreds of times slower on
    processors that only imitate it.
    """
    if precision != "auto":
        if precision not in PRECISIONS:
            raise InputError(
                f"There is no precision {precision!r}. Use auto, {', '.join(PRECISIONS)}."
            )
        return PRECISIONS[precision]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        native = any(
            getattr(torch.cpu, probe, bool)()
            for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        )
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


class Reading(NamedTuple):
    """What one batch of windows gives: consecutive positions ``[first, stop)`` of the stream."""

    first: int
    stop: int
    keys: dict[str, np.ndarray]
    """Per key layer ``(stop - first, dim) float32``."""
    log_probs: np.ndarray | None
    """``(stop - first,) float32``: log p_LM of the token after each position, in nats."""


@dataclass
class LanguageModel:
    """A causal LM with its tokenizer, on a device, in a precision.

    Parameters
    ----------
    model
        Any causal LM of transformers, in float32.
    tokenizer
        The tokenizer it was trained with.
    name
        Where it came from, for messages and records.
    device, precision
        Where and in what type it multiplies; see :func:`choose_device`, :func:`choose_precision`.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    name: str = "model"
    device: str | torch.device = "auto"
    precision: str = "auto"

    def __post_init__(self):
        self.device = choose_device(str(self.device))
        self.dtype = choose_precision(self.precision, self.device)
        self.precision = str(self.dtype).removeprefix("torch.")
        self.model = self.model.to(self.device).eval()
        reuse_memory()

    @classmethod
    def from_pretrained(
        cls, name: str | Path, device: str = "auto", precision: str = "auto"
    ) -> "LanguageModel":
        """Load a model folder (what ``save_pretrained`` writes) or a hub model.

        Raises
        ------
        InputError
            When there is no such model, or it cannot be loaded.
        """
        folder = Path(name)
        if folder.is_dir() and not (folder / "config.json").exists():
            raise InputError(
                f"The folder {name} holds no model: config.json is missing. "
                "Give what knnlm train or save_pretrained wrote."
            )
        try:
            with one_bar():
                model, loading = AutoModelForCausalLM.from_pretrained(
                    name, dtype=torch.float32, output_loading_info=True
                )
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise InputError(
                f"The model {str(name)!r} cannot be loaded: {reason}. "
                "Give a folder that save_pretrained wrote, or a hub name while connected."
            ) from error
        if loading["missing_keys"] or len(tokenizer) < 2:
            lacks = min(loading["missing_keys"], default="its tokenizer")
            raise InputError(
                f"The model {str(name)!r} is not whole: {lacks} is missing. Give a folder to which "
                "save_pretrained wrote the model and its tokenizer."
            )
        return cls(model, tokenizer, str(name), device, precision)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over weights and configuration: two models share them if they are alike."""
        config = self.model.config
        digest = hashlib.sha256(config.model_type.encode())
        digest.update(repr([(name, getattr(config, name, None)) for name in COMPUTES]).encode())
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """16 hex digits that two tokenizers share when they encode alike."""
        return tokenizer_fingerprint(self.tokenizer)

    @property
    def context(self) -> int:
        """The most tokens that the model reads at once."""
        return getattr(self.model.config, "max_position_embeddings", None) or 1024

    @property
    def vocab_size(self) -> int:
        """The number of tokens that the model predicts."""
        return self.model.get_output_embeddings().weight.shape[0]

    def encode(self, text: Iterable, spool: Path | None = None) -> TokenStream:
        """Return the text as a stream of this model's tokens; streams pass through, checked.

        Raises
        ------
        InputError
            When a stream was made by another tokenizer, or holds ids this model does not know.
        """
        if not isinstance(text, TokenStream):
            return TokenStream.encode(text, self.tokenizer, spool)
        if text.tokenizer != self.tokenizer_fingerprint:
            raise InputError(
                f"The tokens were made by tokenizer {text.tokenizer}, the model {self.name} reads "
                f"those of {self.tokenizer_fingerprint}. Encode the text with lm.encode(text)."
            )
        return text

    def windows(self, n: int, window: int | None = None, stride: int | None = None) -> list[Window]:
        """Return the sliding windows over ``n`` tokens; the model's context by default."""
        window = self.context if window is None else window
        if window > self.context:
            raise InputError(
                f"A window of {window} tokens is more than the {self.context} that {self.name} "
                f"reads at once. Choose --window {self.context} or less."
            )
        return sliding_windows(n, window, stride)

    def read(
        self,
        stream: TokenStream,
        *,
        window: int | None = None,
        stride: int | None = None,
        key_layers: Iterable[str] = (KeyLayer.FFN_INPUT,),
        log_probs: bool = False,
        start: int = 0,
    ) -> Iterator[Reading]:
        """Read a stream window by window: keys of each position, log p_LM of the next token.

        One forward pass gives all that is asked for. Without ``log_probs`` it ends at the last
        key layer, so no logits are computed.

        Parameters
        ----------
        stream
            Tokens of this model's tokenizer.
        window, stride
            See :func:`~knnlm.tokens.sliding_windows`.
        key_layers
            Any number of key layers, see :func:`find_module`.
        log_probs
            Also compute log p_LM of the token that follows.
        start
            Skip batches that end at or before this position. Batches have fixed borders, so the
            numbers are the same to the bit wherever one starts.
        """
        layers = [str(layer) for layer in key_layers]
        windows = self.windows(len(stream), window, stride)
        size = max(1, TOKENS_PER_BATCH // windows[0].stop)
        if log_probs:
            kept = windows[-1].stop - windows[0].start if len(windows) == 1 else windows[0].stop
            size = max(1, min(size, LOGITS_PER_BATCH // (kept * self.vocab_size)))
        # The first window gives all of its positions: alone, so that others give equally many.
        batches = [windows[:1]] + [windows[i : i + size] for i in range(1, len(windows), size)]
        with tap(self.model, layers, stop=not log_probs) as captured:
            for batch in batches:
                if batch[-1].stop > start:
                    yield self._read_batch(stream, batch, captured, log_probs)

    @torch.inference_mode()
    def _read_batch(self, stream, batch: list[Window], captured: dict, log_probs: bool) -> Reading:
        length = batch[0].stop - batch[0].start
        at = np.array([w.start for w in batch])[:, None] + np.arange(length + 1)
        tokens = torch.from_numpy(stream.tokens[at].astype(np.int64)).to(self.device)
        given = [w.stop - w.first for w in batch]
        keep = max(given)
        captured.clear()
        try:
            logits = self._forward(tokens[:, :-1], keep if log_probs else 1)
        except _Enough:
            logits = None

        def given_rows(values: torch.Tensor) -> np.ndarray:
            rows = [values[i, values.shape[1] - g :] for i, g in enumerate(given)]
            return torch.cat(rows).float().cpu().numpy()

        for layer, vectors in captured.items():
            if vectors.shape[:-1].numel() != len(batch) * length:
                raise InputError(
                    f"{layer} gives vectors of shape {tuple(vectors.shape)} for {len(batch)} "
                    f"windows of {length} tokens. Choose a module that gives one for each token."
                )
        keys = {
            layer: given_rows(vectors.reshape(len(batch), length, -1))
            for layer, vectors in captured.items()
        }
        target_log_probs = None
        if log_probs:
            targets = tokens[:, tokens.shape[1] - keep :]
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), targets.flatten(), reduction="none"
            )
            target_log_probs = given_rows(-loss.view(len(batch), keep))
        return Reading(batch[0].first, batch[-1].stop, keys, target_log_probs)

    def _forward(self, tokens: torch.Tensor, keep: int | torch.Tensor) -> torch.Tensor:
        """Return logits of the last ``keep`` positions, or of the positions given."""
        with torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
        ):
            if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
                return self.model(tokens, use_cache=False, logits_to_keep=keep).logits
            logits = self.model(tokens, use_cache=False).logits
            return logits[:, -keep:] if isinstance(keep, int) else logits[:, keep]

    @torch.inference_mode()
    def log_distribution(
        self,
        stream: TokenStream,
        positions: np.ndarray,
        window: int | None = None,
        stride: int | None = None,
    ) -> np.ndarray:
        """Return log p_LM over the vocabulary at a few positions, ``(len(positions), V) float32``.

        Each is read in the window that gives it, as :meth:`read` does; no other window is read.
        """
        windows = self.windows(len(stream), window, stride)
        firsts = np.array([w.first for w in windows])
        positions = np.asarray(positions)
        which = np.searchsorted(firsts, positions, side="right") - 1
        result = np.empty((len(positions), self.vocab_size), dtype=np.float32)
        for j in np.unique(which):
            rows = np.flatnonzero(which == j)
            tokens = stream.tokens[windows[j].start : windows[j].stop].astype(np.int64)
            keep = torch.from_numpy(positions[rows] - windows[j].start).to(self.device)
            logits = self._forward(torch.from_numpy(tokens)[None].to(self.device), keep)
            result[rows] = torch.log_softmax(logits[0].float(), dim=-1).cpu().numpy()
        return result
