"""Policy, reference and value function: one trunk where an adapter makes that possible."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.errors import UserError
from shared.kl import chunked_kl, entropy_from_logits
from shared.language_models.causal import LanguageModel

ROWS = 64  # states whose logits are in memory at once: enough for a matrix product


@contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT 0.21 asks models of transformers 5 by a name that is going: a FutureWarning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing", FutureWarning)
        yield


def with_adapter(model: PreTrainedModel, rank: int, targets: Sequence[str]) -> PeftModel:
    """The model with a trained low-rank adapter (Hu et al. 2021) that starts as the identity.

    Raises:
        UserError: no layer has one of these names.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=list(targets),
        task_type="CAUSAL_LM",
    )
    try:
        with quiet_peft():
            return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"--lora-targets {' '.join(targets)}: no linear layer of the model is named so"
        ) from error


class Policy(nn.Module):
    """A causal language model that is trained, what it is held near, and a value of every state.

    With an adapter the reference is the model with the adapter off; without one it is a frozen
    copy. The value head starts at zero; it reads the policy's last hidden state and the mean of
    those of the completion up to it, which get no gradient from it, or with ``critic="separate"``
    the last hidden state of a trunk of its own, trained like the policy's.
    """

    def __init__(
        self,
        model: PeftModel | PreTrainedModel,
        reference: PreTrainedModel | None = None,
        critic: str = "shared",
    ) -> None:
        """``reference`` is needed without an adapter."""
        super().__init__()
        if reference is None and not isinstance(model, PeftModel):
            raise ValueError("a model without an adapter needs a reference")
        for module in model.modules():  # ratios of one policy to itself must be 1
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0  # type: ignore[assignment]
        self.model: Any = model
        self.critic: Any = copy.deepcopy(model) if critic == "separate" else None
        self.frozen: Any = reference.requires_grad_(False).eval() if reference else None
        self.value = nn.Linear((2 if critic == "shared" else 1) * model.config.hidden_size, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    @property
    def lm(self) -> LanguageModel:
        """The policy as a trunk with output weights: the same parameters, not a copy."""
        return _as_trunk(self.model)

    def forward(
        self, tokens: Tensor, attention: Tensor, prompt: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States before every token of the completions, output weights, values.

        Args:
            tokens, attention: [n, prompt + time]; prompts padded on the left.
            prompt: length of the padded prompts.

        Returns:
            [n, time, width], [vocabulary, width], [n, time]
        """
        hidden, weight = self.lm(tokens, attention)
        states = hidden[:, prompt - 1 : -1]
        return states, weight, self.values(states, tokens, attention)

    def values(self, states: Tensor, tokens: Tensor, attention: Tensor) -> Tensor:
        """Of the policy's states [n, time, width] before the last ``time`` tokens: [n, time]."""
        if self.critic is None:
            states = with_mean_so_far(states.detach())  # its errors must not move the policy
        else:
            states = _as_trunk(self.critic)(tokens, attention)[0][:, -states.shape[1] - 1 : -1]
        values: Tensor = self.value(states).squeeze(-1)
        return values

    @torch.no_grad()
    def reference(self, tokens: Tensor, attention: Tensor, prompt: int) -> Tensor:
        """The reference's states [n, time, width] before every token of the completions."""
        with self.as_reference() as lm:
            return lm(tokens, attention)[0][:, prompt - 1 : -1]

    @contextmanager
    def as_reference(self) -> Iterator[LanguageModel]:
        """The reference as a trunk with output weights, valid inside the ``with``."""
        if self.frozen is not None:
            yield _as_trunk(self.frozen)
        else:
            with adapter_off(self.model):
                yield self.lm

    @property
    def reference_weight(self) -> Tensor:
        """The reference's output weights [vocabulary, width]; an adapter leaves them alone."""
        return (_as_trunk(self.frozen) if self.frozen is not None else self.lm).weight

    def save_memory(self) -> None:
        """Keep no activations inside the layers; they are computed again in the backward pass."""
        for model in filter(None, (self.model, self.critic)):
            trunk = _as_trunk(model).trunk
            trunk.activation_checkpointing_enable({"use_reentrant": False})
            trunk.train()  # transformers recomputes in training mode only; there is no dropout


def with_mean_so_far(states: Tensor) -> Tensor:
    """[n, time, width] -> [n, time, 2 width]: every state beside the mean of those up to it."""
    counts = torch.arange(1, states.shape[1] + 1, device=states.device)
    return torch.cat([states, states.cumsum(1) / counts[:, None]], -1)


def _as_trunk(model: Any) -> LanguageModel:
    return LanguageModel(model.get_base_model() if isinstance(model, PeftModel) else model)


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """The model as it was before it was trained, inside the ``with``."""
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def once_in_autocast(weight: Tensor, states: Tensor) -> Tensor:
    """The weight in the type that a product with the states computes in."""
    device = weight.device.type
    autocast = torch.is_autocast_enabled(device)
    return weight.to(torch.get_autocast_dtype(device) if autocast else states.dtype)


def logits_of(states: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """[..., width] and [vocabulary, width] -> [..., vocabulary] of the sampled distribution."""
    if temperature != 1:  # the states are far smaller than the logits
        states = states / temperature
    # One product of all rows: torch would make one for each row of a batch.
    logits = states.flatten(0, -2) @ once_in_autocast(weight, states).T
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.view(*states.shape[:-1], len(weight))


def log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """[..., vocabulary] and [...] -> log-probability of each token."""
    return logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


@torch.no_grad()
def compare(
    states: Tensor,
    weight: Tensor,
    reference_states: Tensor,
    reference_weight: Tensor,
    tokens: Tensor,
    temperature: float,
) -> dict[str, Tensor]:
    """Of every state: log-probability of its token under both, exact KL, entropy; in nats, [n].

    Args:
        states, reference_states: [n, width] of policy and reference.
        weight, reference_weight: [vocabulary, width].
        tokens: [n] what was sampled there.
    """
    weight, reference_weight = (
        once_in_autocast(w, x) for w, x in ((weight, states), (reference_weight, reference_states))
    )
    parts: dict[str, list[Tensor]] = {n: [] for n in ("log_prob", "reference", "kl", "entropy")}
    for rows in torch.arange(len(tokens), device=tokens.device).split(ROWS):
        logits = logits_of(states[rows], weight, temperature)
        reference = logits_of(reference_states[rows], reference_weight, temperature)
        parts["log_prob"].append(log_probs(logits, tokens[rows]))
        parts["reference"].append(log_probs(reference, tokens[rows]))
        parts["kl"].append(chunked_kl(logits, reference))  # KL(policy || reference)
        parts["entropy"].append(entropy_from_logits(logits))
    return {name: torch.cat(found) for name, found in parts.items()}
