"""The loss of training: cross-entropy without the logits of all tokens in memory at once."""

from typing import Any

import torch

ROWS = 256  # tokens at a time: their logits over a vocabulary of thousands stay in the cache


class _CrossEntropy(torch.autograd.Function):
    """Takes the gradients in the forward pass, while the logits of some tokens are there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        inputs, matrix = hidden.to(dtype), weight.to(dtype)
        to_inputs = torch.empty_like(inputs)
        to_matrix = torch.zeros_like(weight, dtype=torch.float32)
        loss = torch.zeros((), device=hidden.device)
        least = torch.finfo(torch.float32).tiny
        for lo in range(0, len(targets), ROWS):
            some = slice(lo, lo + ROWS)
            target = targets[some, None]
            p = torch.softmax(inputs[some] @ matrix.T, dim=1, dtype=torch.float32)  # (rows, V)
            loss -= p.gather(1, target).clamp_min(least).log().sum()
            p.scatter_add_(1, target, torch.full_like(target, -1, dtype=p.dtype))  # dloss/dlogits
            p = p.to(dtype)
            to_inputs[some] = p @ matrix
            to_matrix += p.T @ inputs[some]
        ctx.save_for_backward(
            (to_inputs.float() / len(targets)).to(hidden.dtype),
            (to_matrix / len(targets)).to(weight.dtype),
        )
        return loss / len(targets)

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        to_hidden, to_weight = ctx.saved_tensors
        return scale * to_hidden, scale * to_weight, None, None


def cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return the mean of −log p of the targets, where p is the softmax of ``hidden @ weight.T``.

    Carrying all tokens' logits to memory and back took a fifth of the time of a training step. The
    same number comes from a few hundred tokens at a time, as in Liger Kernel (Hsu et al. 2024,
    arXiv 2410.10989).

    Parameters
    ----------
    hidden
        ``(n, dim)``: what the last layer gives for each token.
    weight
        ``(V, dim)``: the output embeddings.
    targets
        ``(n,) int64``: the tokens that follow.
    dtype
        The type to multiply in; sums and logarithms are in float32.

    Returns
    -------
    torch.Tensor
        In nats per token; of a token whose p is below float32's least, 87 nats are counted.
    """
    return _CrossEntropy.apply(hidden, weight, targets, dtype)
