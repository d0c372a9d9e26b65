"""The optimizer of the small models: orthogonal steps for matrices, AdamW for the rest."""

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import GPT2LMHeadModel


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for everything else.

    Muon's step is the momentum matrix made orthogonal: its singular values all become about 1, so
    rare directions are learned as fast as frequent ones, and less text is needed. The step is
    scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so one learning rate serves
    both. Here it is taken for one attention head, or as many units of the feed-forward layer, at a
    time, which costs a fifth of whole matrices; and in a type that the processor multiplies in:
    ``torch.optim.Muon`` uses bfloat16, which many only imitate.

    Parameters
    ----------
    model
        Its blocks' parameters with two dimensions get Muon.
    lr
        Learning rate of the matrices, the norms and the biases; the embeddings, of which a batch
        moves few rows, get twice as much.
    dtype
        The type in which steps are made orthogonal.
    """

    MOMENTUM = 0.9
    NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients

    def __init__(self, model: GPT2LMHeadModel, lr: float, dtype: torch.dtype = torch.float32):
        self.dtype = dtype
        self.head = (model.config.n_embd // model.config.n_head, model.config.n_embd)
        blocks = dict(model.transformer.h.named_parameters())
        reading = [
            w for name, w in blocks.items() if name.endswith(("c_attn.weight", "c_fc.weight"))
        ]
        writing = [w for name, w in blocks.items() if name.endswith("c_proj.weight")]
        tokens, positions = model.transformer.wte.weight, model.transformer.wpe.weight
        groups: list[dict[str, Any]] = [
            {"params": reading},  # a unit (of a head, of the feed-forward layer) is a column
            {"params": writing},  # … a row
            {"params": [tokens], "weight_decay": 0.1, "lr": 2 * lr},
            {"params": [positions], "weight_decay": 0.0, "lr": 2 * lr},
            {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ]
        super().__init__(groups, lr=lr, betas=(0.9, 0.95), fused=True)

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch tells two cases apart, which are one here
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Update the blocks' matrices; AdamW then updates what still has a gradient."""
        reading, writing, *_ = self.param_groups
        units = [self._momentum(w).T for w in reading["params"]]
        units += [self._momentum(w) for w in writing["params"]]
        heads = torch.cat(units).to(self.dtype).view(-1, *self.head)
        steps = self.orthogonal(heads).view(-1, self.head[1])
        steps = iter(steps.split([len(u) for u in units]))
        for weight in reading["params"]:
            weight.sub_(next(steps).T, alpha=reading["lr"])
        for weight in writing["params"]:
            weight.sub_(next(steps), alpha=writing["lr"])
        return super().step(closure)

    def _momentum(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the momentum, Nesterov's, and take the gradient away."""
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None  # no weight of a block is left out of a step
        weight.grad = None
        if not state:  # AdamW asks every loaded state for its step
            state.update(step=torch.zeros(()), momentum=torch.zeros_like(weight))
        state["momentum"].lerp_(gradient, 1 - self.MOMENTUM)
        return gradient.lerp(state["momentum"], self.MOMENTUM)

    @classmethod
    def orthogonal(cls, x: torch.Tensor) -> torch.Tensor:
        """Return ``(n, rows, columns)``, rows ≤ columns, with rows orthogonal scaled as AdamW's.

        Five Newton-Schulz rounds bring all singular values to between 0.7 and 1.2.
        """
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        a, b, c = cls.NEWTON_SCHULZ
        for _ in range(5):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x * (0.2 * math.sqrt(x.shape[2]))
