"""Policy, reference and value function, in one trunk where an adapter makes that possible."""

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
from transformers.pytorch_utils import Conv1D

from shared.errors import UserError
from shared.kl import chunked_kl, entropy_from_logits
from shared.language_models.causal import LanguageModel
from shared.language_models.head import OutputHead

ROWS = 64  # states whose logits are in memory at once: enough for a matrix product
LINEAR = (nn.Linear, Conv1D)  # GPT-2 has the latter


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Ignore the FutureWarning for a name that PEFT 0.21 uses and transformers 5 deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing", FutureWarning)
        yield


def lora(
    model: nn.Module, rank: int, targets: Sequence[str], task: str = "CAUSAL_LM", **more: Any
) -> LoraConfig:
    """Low-rank adapter (Hu et al. 2021) of the layers with these names, without dropout.

    Raises:
        UserError: no linear layer of the model has one of these names.
    """
    linear = [name for name, part in model.named_modules() if isinstance(part, LINEAR)]
    names = {name.rpartition(".")[2] for name in linear}
    if not names & set(targets):
        raise UserError(
            f"--lora-targets {' '.join(targets)}: no linear layer of the model has such a name; "
            f"there are {', '.join(sorted(names))}"
        )
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=list(targets),
        task_type=task,
        **more,
    )


def with_adapter(model: PreTrainedModel, rank: int, targets: Sequence[str]) -> PeftModel:
    """The model with an adapter of :func:`lora`, which starts as the identity."""
    with quiet_peft():
        return get_peft_model(model, lora(model, rank, targets))


class Policy(nn.Module):
    """A trained causal language model, the reference it is held near, and a value of every state.

    With an adapter the reference is the model with the adapter off; without one it is a frozen
    copy. The value head starts at zero. It reads the policy's last hidden state and the mean of
    the completion's states up to it, and sends no gradient into them; with ``critic="separate"``
    it reads the last hidden state of a second trunk, which is trained with it.
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
    ) -> tuple[Tensor, OutputHead, Tensor]:
        """States [n, time, width] before every token of the completions, the output head, values
        [n, time].

        Args:
            tokens, attention: [n, prompt + time]; prompts padded on the left.
            prompt: length of the padded prompts.
        """
        hidden, head = self.lm(tokens, attention)
        states = hidden[:, prompt - 1 : -1]
        return states, head, self.values(states, tokens, attention)

    def values(self, states: Tensor, tokens: Tensor, attention: Tensor) -> Tensor:
        """Values of the policy's states [n, time, width] before the last tokens: [n, time]."""
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
    def reference_head(self) -> OutputHead:
        """The reference's output head; an adapter leaves it alone."""
        return (_as_trunk(self.frozen) if self.frozen is not None else self.lm).output

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
    """Inside the ``with`` the model is as it was before it was trained."""
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def once_in_autocast(head: OutputHead, states: Tensor) -> OutputHead:
    """The head in the type in which its product with the states is computed."""
    device = states.device.type
    autocast = torch.is_autocast_enabled(device)
    return head.to(torch.get_autocast_dtype(device) if autocast else states.dtype)


def logits_of(states: Tensor, head: OutputHead, temperature: float) -> Tensor:
    """[..., width] -> [..., vocabulary] of the sampled distribution."""
    head = once_in_autocast(head, states)
    plain = head.bias is None and head.soft_cap is None
    if temperature != 1 and plain:  # the states are far smaller than the logits
        states = states / temperature
    # One product of all rows: torch would make one for each row of a batch.
    logits = head.logits(states.flatten(0, -2).to(head.weight.dtype))
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1 and not plain:
        wide = wide / temperature
    return wide.view(*states.shape[:-1], len(head.weight))


def log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """[..., vocabulary] and [...] -> log-probability of each token."""
    return logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


@torch.no_grad()
def compare(
    states: Tensor,
    head: OutputHead,
    reference_states: Tensor,
    reference_head: OutputHead,
    tokens: Tensor,
    temperature: float,
) -> tuple[Tensor, ...]:
    """Compare policy and reference at every state, a few states at a time.

    Args:
        states, reference_states: [n, width] of policy and reference.
        head, reference_head: what makes logits of them.
        tokens: [n] tokens that were sampled there.

    Returns:
        log-probability of each token under the policy and under the reference, exact
        KL(policy || reference), entropy of the policy: [n] each, in nats.
    """
    head, reference_head = (
        once_in_autocast(h, x) for h, x in ((head, states), (reference_head, reference_states))
    )
    parts = []
    for rows in torch.arange(len(tokens), device=tokens.device).split(ROWS):
        logits = logits_of(states[rows], head, temperature)
        reference = logits_of(reference_states[rows], reference_head, temperature)
        parts.append(
            (
                log_probs(logits, tokens[rows]),
                log_probs(reference, tokens[rows]),
                chunked_kl(logits, reference),
                entropy_from_logits(logits),
            )
        )
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def optimizer_of(policy: Policy, lr: float, value_lr: float) -> torch.optim.Adam:
    """Adam with two rates: the policy's, and that of the value head and a separate critic.

    The epsilon of 1e-5 holds back the first steps, as TensorFlow's Adam did for the published
    settings (Huang et al. 2024, "N implementation details of RLHF with PPO", detail 1).
    """
    of_value = [*policy.value.parameters()]
    if policy.critic is not None:
        of_value += policy.critic.parameters()
    value_parameters = {id(p) for p in of_value}
    of_policy = [p for p in policy.parameters() if id(p) not in value_parameters]
    groups = [
        {"params": [p for p in parameters if p.requires_grad], "lr": rate, "peak_lr": rate}
        for parameters, rate in ((of_policy, lr), (of_value, value_lr))
    ]
    return torch.optim.Adam(groups, eps=1e-5, fused=True)
