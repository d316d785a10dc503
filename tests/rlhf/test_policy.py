"""Policy, reference and rollouts: the numbers of a plain forward pass, whatever the padding."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlhf.config import Config
from rlhf.policies import make_policy
from rlhf.policy import Policy, with_adapter
from rlhf.rollout import Completions, cut_at_end, padded, sample, score_tokens
from shared.errors import UserError
from shared.kl import kl_from_logits
from tests import tiny

PROMPTS = [[5, 6, 7], [8], [10, 11, 12, 13, 14]]
END, PAD = 1, 2


def moved(policy: Policy) -> Policy:
    """The policy with its adapter (or all of it) away from the reference."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    return policy


def adapted() -> Policy:
    return Policy(with_adapter(tiny.llama(), 4, ("q_proj", "v_proj")))


def completions(policy: Policy, padding: int = PAD, time: int = 12) -> Completions:
    uniforms = torch.rand(len(PROMPTS), time, generator=torch.Generator().manual_seed(1))
    return sample(policy.lm, PROMPTS, uniforms, [END], padding, 1.0)


@pytest.mark.parametrize("padding", [PAD, END])
@pytest.mark.parametrize("lora", [0, 4])
def test_numbers_are_those_of_rows_without_padding(padding: int, lora: int) -> None:
    config = Config(lora=lora, lora_targets=("q_proj", "v_proj"))
    policy = moved(make_policy(config, tiny.llama()))
    rollout = completions(policy, padding)
    scores = score_tokens(policy, rollout, 1.0, micro_batch=2)
    before = tiny.llama()
    for i, prompt in enumerate(PROMPTS):
        own = rollout.sampled[i][rollout.mask[i]]
        row = torch.cat([torch.tensor(prompt), own])[None]
        with torch.no_grad():
            logits = policy.model(input_ids=row).logits[0, len(prompt) - 1 : -1]
            reference = before(input_ids=row).logits[0, len(prompt) - 1 : -1]
        log_prob = logits.log_softmax(-1).gather(1, own[:, None])[:, 0]
        log_prob_i, reference_i, kl_i = (x[i][rollout.mask[i]] for x in scores[:3])
        assert torch.allclose(log_prob_i, log_prob, atol=2e-5)
        log_prob_of_reference = reference.log_softmax(-1).gather(1, own[:, None])[:, 0]
        assert torch.allclose(reference_i, log_prob_of_reference, atol=2e-5)
        assert torch.allclose(kl_i, kl_from_logits(logits, reference), atol=2e-5)
        assert kl_i.min() > 0.01  # it did move


def test_without_a_step_the_policy_is_the_reference() -> None:
    policy = adapted()
    sampled = completions(policy)
    scores = score_tokens(policy, replace(sampled, states=None), 1.0, micro_batch=2)
    assert torch.equal(scores.log_prob, scores.reference)
    assert torch.equal(scores.kl, torch.zeros_like(scores.kl))
    assert torch.equal(scores.value, torch.zeros_like(scores.value))
    rounded = score_tokens(policy, sampled, 1.0, micro_batch=2)
    assert torch.allclose(rounded.log_prob, rounded.reference, atol=1e-5)
    assert rounded.kl.max() < 1e-9


def test_the_states_of_sampling_are_those_of_a_forward_pass() -> None:
    policy = moved(adapted())
    rollout = completions(policy, time=40)
    states = policy(rollout.tokens, rollout.attention, rollout.prompt)[0]
    assert rollout.states is not None
    assert not rollout.mask.all()
    assert torch.allclose(rollout.states[rollout.mask], states[rollout.mask], atol=1e-5)


def test_the_reference_stays_what_it_was_before_training() -> None:
    policy, before = moved(adapted()), tiny.llama()
    tokens = torch.arange(3, 23).reshape(2, 10)
    attention = torch.ones_like(tokens).bool()
    hidden = before.model(input_ids=tokens).last_hidden_state[:, 3:-1]
    assert torch.equal(policy.reference(tokens, attention, 4), hidden)
    with policy.as_reference():
        pass
    assert not torch.allclose(policy(tokens, attention, 4)[0], hidden, atol=1e-2)
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert trained  # switching the adapter off and on again leaves it trained
    assert all("lora" in name or name.startswith("value") for name in trained)


def test_samples_end_with_the_first_end_and_depend_on_their_own_row_alone() -> None:
    policy = adapted()
    whole = completions(policy, time=40)
    assert whole.ended.any()
    for i in range(len(PROMPTS)):
        ends = (whole.sampled[i] == END).nonzero()
        if whole.ended[i]:
            assert whole.mask[i].sum() == ends[0, 0] + 1 if len(ends) else False
        else:
            assert whole.mask[i].all()
    uniforms = torch.rand(3, 40, generator=torch.Generator().manual_seed(1))
    alone = sample(policy.lm, PROMPTS[1:2], uniforms[1:2], [END], PAD, 1.0)
    assert alone.token_lists()[0] == whole.token_lists()[1]


def test_samples_have_the_models_distribution() -> None:
    """The first token's frequencies, over a grid of random numbers that is exact to 1/n."""
    policy, n = moved(adapted()), 4000
    uniforms = ((torch.arange(n) + 0.5) / n)[:, None]
    rollout = sample(policy.lm, [PROMPTS[0]] * n, uniforms, [END], PAD, temperature=0.7)
    logits = policy.model(input_ids=torch.tensor(PROMPTS[0])[None]).logits[0, -1]
    share = torch.bincount(rollout.sampled[:, 0], minlength=len(logits)) / n
    assert torch.allclose(share, (logits / 0.7).softmax(-1), atol=2 / n)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_ratios_estimate_the_exact_kl_of_a_sequence(temperature: float) -> None:
    """At the temperature of sampling only: of any other distribution k1 is biased."""
    policy, n = moved(adapted()), 2000
    uniforms = torch.rand(n, 12, generator=torch.Generator().manual_seed(2))
    rollout = sample(policy.lm, [PROMPTS[0]] * n, uniforms, [END], PAD, temperature)
    assert 0.1 < rollout.ended.float().mean() < 0.9  # completions of many lengths
    scores = score_tokens(policy, rollout, temperature, micro_batch=500)
    assert scores.kl.min() >= 0
    off = (scores.log_prob - scores.reference - scores.kl).sum(1).double()
    error = (off.std() / n**0.5).item()
    assert abs(off.mean().item()) < 4 * error < 0.1 * scores.kl.sum(1).mean().item()
    other = score_tokens(policy, rollout, 1.5, micro_batch=500)
    off = (other.log_prob - other.reference - other.kl).sum(1).double()
    assert abs(off.mean().item()) > 4 * (off.std() / n**0.5).item()


def test_padding_that_is_the_end_of_text_is_no_end() -> None:
    tokens, attention = padded([[5], [6, 7]], END)
    assert tokens.tolist() == [[END, 5], [6, 7]]
    sampled = torch.cat([tokens, torch.tensor([[8, END, 9], [END, 8, 9]])], 1)
    rollout = cut_at_end(sampled, attention, [END], END)
    assert rollout.mask.tolist() == [[True, True, False], [True, False, False]]
    assert rollout.attention.tolist() == [
        [False, True, True, True, False],
        [True, True, True, False, False],
    ]
    assert rollout.tokens.tolist() == [[END, 5, 8, END, END], [6, 7, END, END, END]]
    assert rollout.ended.tolist() == [True, True]


def test_garbage_in_the_padding_changes_nothing() -> None:
    policy = moved(adapted())
    rollout = completions(policy, time=40)
    noise = torch.randint(3, 60, rollout.tokens.shape)
    other = Completions(
        torch.where(rollout.attention, rollout.tokens, noise),
        rollout.attention,
        rollout.mask,
        rollout.ended,
    )
    assert not torch.equal(other.tokens, rollout.tokens)
    rollout = replace(rollout, states=None)  # else nothing is read anew
    first, second = score_tokens(policy, rollout, 1.0, 3), score_tokens(policy, other, 1.0, 3)
    for one, two in zip(first[:5], second[:5], strict=True):  # all but the reference's states
        assert torch.equal(one[rollout.mask], two[rollout.mask])


def test_a_shared_critic_reads_each_state_and_the_mean_up_to_it() -> None:
    """Of the completion alone: not of its prompt, not of what comes later."""
    policy = moved(adapted())
    rollout = completions(policy, time=7)
    with torch.no_grad():
        policy.value.weight.normal_()
    states, _, value = policy(rollout.tokens, rollout.attention, rollout.prompt)
    own, of_mean = policy.value.weight[0].split(states.shape[-1])
    for time in range(7):
        mean = states[:, : time + 1].mean(1)
        expected = states[:, time] @ own + mean @ of_mean + policy.value.bias
        torch.testing.assert_close(value[:, time], expected)
    value.sum().backward()
    with_gradient = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert with_gradient == {"value.weight", "value.bias"}


def test_a_critic_of_its_own_shares_nothing() -> None:
    config = Config(lora=4, lora_targets=("q_proj",), critic="separate")
    policy = make_policy(config, tiny.llama())
    rollout = completions(policy)
    _, _, value = policy(rollout.tokens, rollout.attention, rollout.prompt)
    with torch.no_grad():
        policy.value.weight += 1
    _, _, value = policy(rollout.tokens, rollout.attention, rollout.prompt)
    value.sum().backward()
    with_gradient = {
        name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None
    }
    assert with_gradient == {"critic", "value"}


def test_activation_checkpointing_recomputes() -> None:
    calls: list[Tensor] = []
    gradients = []
    for saving in (False, True):
        config = Config(lora=4, lora_targets=("q_proj",), activation_checkpointing=saving)
        torch.manual_seed(0)
        policy = make_policy(config, tiny.llama())
        layer = policy.lm.trunk.layers[0].mlp
        calls.clear()
        layer.register_forward_pre_hook(lambda *_: calls.append(torch.zeros(())))
        rollout = completions(policy)
        calls.clear()
        states, _, _ = policy(rollout.tokens, rollout.attention, rollout.prompt)
        states.square().sum().backward()
        gradients.append([p.grad for p in policy.parameters() if p.grad is not None])
        assert len(calls) == (2 if saving else 1)
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_names_of_no_layer() -> None:
    with pytest.raises(UserError, match="--lora-targets query: no linear layer"):
        with_adapter(tiny.llama(), 4, ("query",))
