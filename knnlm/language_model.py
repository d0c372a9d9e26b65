"""Any Hugging Face causal LM, seen as: windows in; keys and log-probabilities out."""

import hashlib
import inspect
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import cached_file

from knnlm.device import choose_device, choose_precision, reuse_memory
from knnlm.errors import InputError
from knnlm.key_layers import Enough, KeyLayer, tap
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


class Reading(NamedTuple):
    """What one batch of windows gives: consecutive positions ``[first, stop)`` of the stream."""

    first: int
    stop: int
    keys: dict[str, np.ndarray]
    """Per key layer ``(stop - first, dim) float32``."""
    log_probs: np.ndarray | None
    """``(stop - first,) float32``: log p_LM of the token after each position, in nats."""


def join(readings: Iterable[Reading]) -> Reading:
    """Return one reading of all that consecutive ones give, in memory: for texts of a test's size.

    >>> halves = [Reading(0, 1, {}, np.zeros(1)), Reading(1, 3, {}, np.ones(2))]
    >>> join(halves).log_probs.tolist()
    [0.0, 1.0, 1.0]
    """
    readings = list(readings)
    keys = {
        layer: np.concatenate([reading.keys[layer] for reading in readings])
        for layer in readings[0].keys
    }
    given = [reading.log_probs for reading in readings if reading.log_probs is not None]
    log_probs = np.concatenate(given) if given else None
    return Reading(readings[0].first, readings[-1].stop, keys, log_probs)


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
        Where and in what type it multiplies; see
        :func:`~knnlm.device.choose_device`, :func:`~knnlm.device.choose_precision`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        name: str = "model",
        device: str | torch.device = "auto",
        precision: str = "auto",
    ):
        self.tokenizer, self.name = tokenizer, name
        self.device = choose_device(str(device))
        self.dtype = choose_precision(precision, self.device)
        self.precision = str(self.dtype).removeprefix("torch.")
        self.model: PreTrainedModel = model.to(self.device).eval()  # type: ignore[arg-type]
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
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    name, dtype=torch.float32, output_loading_info=True
                )
            model, loading = loaded
            tokenizer = _load_tokenizer(name, model.config)
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
    def _read_batch(
        self,
        stream: TokenStream,
        batch: list[Window],
        captured: dict[str, torch.Tensor],
        log_probs: bool,
    ) -> Reading:
        length = batch[0].stop - batch[0].start
        at = np.array([w.start for w in batch])[:, None] + np.arange(length + 1)
        tokens = torch.from_numpy(stream.tokens[at].astype(np.int64)).to(self.device)
        given = [w.stop - w.first for w in batch]
        keep = max(given)

        def given_rows(values: torch.Tensor) -> np.ndarray:
            rows = [values[i, values.shape[1] - g :] for i, g in enumerate(given)]
            return torch.cat(rows).float().cpu().numpy()

        captured.clear()
        target_log_probs = None
        with suppress(Enough):
            logits = self._forward(tokens[:, :-1], keep if log_probs else 1)
            if log_probs:
                targets = tokens[:, tokens.shape[1] - keep :]
                loss = torch.nn.functional.cross_entropy(
                    logits.float().flatten(0, 1), targets.flatten(), reduction="none"
                )
                target_log_probs = given_rows(-loss.view(len(batch), keep))
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


def _load_tokenizer(name: str | Path, config: PreTrainedConfig) -> Tokenizer:
    """Load a model's tokenizer; where its files do not name a class, take it as it is written.

    For KoGPT2 (``skt/kogpt2-base-v2``), which has a tokenizer.json alone, the Auto class goes by
    the model's type and takes GPT-2's bytes for what are characters. Its end of text, which is also
    its beginning, is in the model's configuration.
    """
    quietly = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    configured, written = (
        cached_file(name, file, **quietly) for file in ("tokenizer_config.json", "tokenizer.json")
    )
    if configured or not written:
        return AutoTokenizer.from_pretrained(name)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(name)
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
    if config.eos_token_id is not None:
        end = tokenizer.convert_ids_to_tokens(config.eos_token_id)
        names |= {"bos_token": end, "eos_token": end}
    known = tokenizer.get_vocab()
    tokenizer.add_special_tokens({role: token for role, token in names.items() if token in known})
    return tokenizer
