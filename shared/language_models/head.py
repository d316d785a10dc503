"""The last layer of a causal language model: what makes logits of hidden states."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import UserError, first_line


class OutputHead(NamedTuple):
    """The last layer: logits = hidden @ weight.T + bias, and c tanh(logits / c) of a soft cap c."""

    weight: Tensor
    """[vocabulary, width]."""
    bias: Tensor | None = None
    """[vocabulary]."""
    soft_cap: float | None = None

    def to(self, dtype: torch.dtype) -> "OutputHead":
        """The same in another type."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return OutputHead(self.weight.to(dtype), bias, self.soft_cap)

    def first(self, count: int) -> "OutputHead":
        """Of the first ``count`` tokens alone."""
        bias = None if self.bias is None else self.bias[:count]
        return OutputHead(self.weight[:count], bias, self.soft_cap)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., width] -> [..., vocabulary], in the type of ``hidden``."""
        logits = F.linear(hidden, *self.to(hidden.dtype)[:2])
        return (
            logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)
        )


@torch.no_grad()
def logit_scale(model: Any) -> float:
    """The factor c of a model whose logits are those of c hidden, found by a forward pass.

    1 for most; Granite, Cohere and Falcon-H1 have another. Kept with the model.

    Raises:
        UserError: its logits are not those of its output weights, bias and soft cap.
    """
    if (known := getattr(model, "_logit_scale", None)) is not None:
        return float(known)
    kind, layer = model.config.model_type, model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        raise UserError(f"{kind}: output weights of an unknown kind")
    cap = soft_cap(model)
    training, device = model.training, layer.weight.device
    tokens = torch.arange(min(8, layer.weight.shape[0]), device=device)[None]
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "use_cache": False}
    model.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            logits = model(**inputs).logits.double()
            hidden = trunk_of(model)(**inputs).last_hidden_state
            products = F.linear(hidden, layer.weight).double()
    except (RuntimeError, AttributeError, TypeError) as error:
        raise UserError(
            f"{kind}: its output weights do not take its hidden states ({first_line(error)})"
        ) from error
    finally:
        model.train(training)
    linear = logits if cap is None else cap * torch.atanh(logits / cap)
    if layer.bias is not None:
        linear = linear - layer.bias.double()
    scale = ((linear * products).sum() / products.square().sum()).item()
    head = OutputHead(layer.weight.double(), layer.bias, cap)
    difference = (logits - head.logits(scale * hidden.double())).abs().max().item()
    if not difference <= 1e-4 * logits.abs().max().item():
        raise UserError(
            f"{kind}: its logits are not a multiple of hidden states times output weights (they "
            f"differ by up to {difference:.2g}), so that every loss here would be another model's"
        )
    model._logit_scale = scale if abs(scale - 1) > 1e-5 else 1.0
    return float(model._logit_scale)


def trunk_of(model: Any) -> Any:
    """The model without its last layer."""
    base = model.base_model
    return getattr(model, "model", base) if base is model else base  # Llama 4 names it otherwise


def soft_cap(model: Any) -> float | None:
    """c of a model whose logits are c tanh(logits / c), as its configuration says."""
    cap = getattr(model.config, "final_logit_softcapping", None)
    return float(cap) if cap else None
