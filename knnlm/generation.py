"""kNN-LM inside ``model.generate``: greedy, sampling or beams, in batches."""

from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from knnlm.errors import InputError
from knnlm.index import Index
from knnlm.key_layers import tap
from knnlm.language_model import LanguageModel
from knnlm.mixture import Setting, interpolate, knn_distribution


class KNNLogitsProcessor(LogitsProcessor):
    """Turn the model's scores into log probabilities of the mixture, step by step.

    Used as a context manager around ``generate``: while it is open, the key of the last token
    read is taken from the model's own forward pass, so nothing is computed twice.

    Parameters
    ----------
    lm, index
        The model, and an index over a datastore that it made.
    setting
        What :meth:`~knnlm.evaluation.Sweep.best` returns, instead of the three numbers below.
    k, lam, temperature
        The mixture's parameters; ``temperature`` is that of p_kNN, not of sampling.
    nprobe
        See :meth:`~knnlm.index.Index.search`.

    Examples
    --------
    ::

        with KNNLogitsProcessor(lm, index, k=64, lam=0.4, temperature=10.0) as memory:
            lm.model.generate(**inputs, logits_processor=[memory])
    """

    def __init__(
        self,
        lm: LanguageModel,
        index: Index,
        setting: Setting | None = None,
        *,
        k: int = 1024,
        lam: float = 0.25,
        temperature: float = 1.0,
        nprobe: int | None = None,
    ):
        index.datastore.check_model(lm)
        if setting is not None:
            k, lam, temperature = setting.k, setting.lam, setting.temperature
        self.lm, self.index = lm, index
        self.k, self.lam, self.temperature, self.nprobe = k, lam, temperature, nprobe
        self.key_layer = index.datastore.record["key_layer"]

    def __enter__(self) -> "KNNLogitsProcessor":
        self._tap = tap(self.lm.model, [self.key_layer])
        self._captured = self._tap.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._tap.__exit__(*exception)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, vocab)`` log probabilities; the scores themselves at λ = 0."""
        if self.lam == 0:
            return scores
        # Left padding keeps the last place for the last token; beams are rows like any other.
        read = self._captured[self.key_layer]
        keys = read.reshape(len(scores), -1, read.shape[-1])[:, -1]  # (batch, dim)
        distances, ids = self.index.search(keys.float().cpu().numpy(), self.k, nprobe=self.nprobe)
        values = self.index.datastore.values_of(ids)
        p_knn = knn_distribution(distances, values, scores.shape[-1], self.temperature)
        log_lm = torch.log_softmax(scores.float(), dim=-1).cpu().numpy()
        with np.errstate(divide="ignore"):
            mixed = interpolate(log_lm, np.log(p_knn), self.lam)
        return torch.from_numpy(mixed).to(scores)


@torch.inference_mode()
def generate(
    lm: LanguageModel,
    index: Index,
    prompts: list[str],
    setting: Setting | None = None,
    *,
    max_new_tokens: int = 50,
    k: int = 1024,
    lam: float = 0.25,
    temperature: float = 1.0,
    sample: bool = False,
    beams: int = 1,
    seed: int = 0,
    nprobe: int | None = None,
) -> list[str]:
    """Continue prompts, all in one batch; return the continuations.

    Parameters
    ----------
    setting, k, lam, temperature, nprobe
        See :class:`KNNLogitsProcessor`.
    max_new_tokens
        How far at most; a continuation ends earlier at the end-of-text token.
    sample
        Draw from the mixture instead of taking its most probable token.
    beams
        Continuations to keep of each prompt; the most probable one as a whole is returned.
    seed
        Of the drawing.

    Raises
    ------
    InputError
        When a prompt is empty, or prompt and continuation exceed the model's context.
    """
    tokenizer = lm.tokenizer
    end = tokenizer.eos_token_id
    encoded = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    if not prompts or not all(encoded):
        raise InputError("A prompt is empty. Give at least one token to go on from.")
    width = max(map(len, encoded))
    if width + max_new_tokens > lm.context:
        raise InputError(
            f"{width} tokens of prompt and {max_new_tokens} new ones are more than the "
            f"{lm.context} that {lm.name} reads. Shorten the prompt, or ask for fewer."
        )
    padding = [[tokenizer.pad_token_id or end or 0] * (width - len(ids)) for ids in encoded]
    tokens = torch.tensor([p + ids for p, ids in zip(padding, encoded, strict=True)])
    mask = torch.tensor([[0] * len(p) + [1] * (width - len(p)) for p in padding])
    torch.manual_seed(seed)
    autocast = torch.autocast(lm.device.type, lm.dtype, enabled=lm.dtype != torch.float32)
    processor = KNNLogitsProcessor(
        lm, index, setting, k=k, lam=lam, temperature=temperature, nprobe=nprobe
    )
    model: Any = lm.model  # PreTrainedModel itself has no generate; those of causal LMs do
    with processor, autocast:
        output = model.generate(
            tokens.to(lm.device),
            attention_mask=mask.to(lm.device),
            max_new_tokens=max_new_tokens,
            do_sample=sample,
            num_beams=beams,
            top_k=None if not sample else 0,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end,
            logits_processor=LogitsProcessorList([processor]),
        )
    return tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
