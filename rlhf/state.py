"""What a checkpoint of PPO holds: what is trained, the coefficient, the rewards' scale."""

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.config import Config
from rlhf.policy import Policy, with_adapter
from rlhf.rewards import Standardiser


class State(nn.Module):
    """The trained parameters of a policy (never the frozen ones) and the numbers beside them."""

    beta: Tensor

    def __init__(self, policy: Policy, scale: Standardiser, beta: float) -> None:
        super().__init__()
        self.trained = nn.ParameterDict(
            {name.replace(".", "/"): p for name, p in policy.named_parameters() if p.requires_grad}
        )
        self.scale = scale
        self.register_buffer("beta", torch.tensor(beta, dtype=torch.float64))


def make_policy(config: Config, model: PreTrainedModel) -> Policy:
    """The policy that is trained: ``model`` with an adapter, or all of it beside a frozen copy."""
    if config.lora:
        policy = Policy(with_adapter(model, config.lora, config.lora_targets), None, config.critic)
    else:
        policy = Policy(model, copy.deepcopy(model), config.critic)
    if config.activation_checkpointing:
        policy.save_memory()
    return policy


def optimizer_of(policy: Policy, lr: float, value_lr: float) -> torch.optim.Adam:
    """Adam with two rates: the policy's, and that of the value head and a critic of its own.

    The epsilon of 1e-5 holds back the first steps, as TensorFlow's Adam did for the published
    settings (Huang et al. 2024, "N implementation details of RLHF with PPO", detail 1).
    """
    values = [*policy.value.parameters()]
    if policy.critic is not None:
        values += policy.critic.parameters()
    of_value = {id(p) for p in values}
    trained = [p for p in policy.parameters() if p.requires_grad and id(p) not in of_value]
    values = [p for p in values if p.requires_grad]
    groups = [
        {"params": trained, "lr": lr, "peak_lr": lr},
        {"params": values, "lr": value_lr, "peak_lr": value_lr},
    ]
    return torch.optim.Adam(groups, eps=1e-5, fused=True)
