"""Where a model's keys are read: which vector of which block, in every known architecture."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import NamedTuple, cast

import torch
from transformers import PreTrainedModel

from knnlm.errors import InputError


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
    blocks = cast(torch.nn.ModuleList, model.get_submodule(names.blocks))
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


class Enough(Exception):
    """Ends a forward pass once the last tap has been read."""


@contextmanager
def tap(
    model: PreTrainedModel, key_layers: Iterable[str], stop: bool = False
) -> Iterator[dict[str, torch.Tensor]]:
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

    def take(layer: str, value: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        captured[layer] = value[0] if isinstance(value, tuple) else value
        if stop and len(captured) == len(layers):
            raise Enough

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
