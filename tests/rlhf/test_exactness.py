"""The loss and the program against problems whose gradient and whose optimum are known.

Expectations are sums over every completion of a tiny model in float64; gradients are those of all
its parameters. The bandit is a prompt with completions of one token, trained by the program itself.
"""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf.config import Config
from rlhf.policies import load_policy
from rlhf.policy import Policy
from rlhf.ppo import loss_terms, prepare, train
from rlhf.prompts import is_held_out
from rlhf.rollout import cut_at_end, score_tokens
from tests import tiny

BETA = 0.5
ARMS = 16
REWARDS = torch.rand(ARMS, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3


def reward(completion_ids, **_):
    """What a completion of the bandit is worth: its first token decides."""
    return [REWARDS[ids[0]].item() for ids in completion_ids]


THIS = "tests.rlhf.test_exactness:reward"


@pytest.fixture(scope="module")
def bandit(tmp_path_factory):
    """A folder with a model of 16 tokens, and prompts of which one is trained on."""
    folder = tmp_path_factory.mktemp("bandit")
    tiny.write_model(folder / "model", layers=1, vocabulary=ARMS)
    held_out = [word for word in tiny.WORDS[: ARMS - 3] if is_held_out(word)]
    trained = next(word for word in tiny.WORDS[: ARMS - 3] if not is_held_out(word))
    lines = [json.dumps({"prompt": word}) for word in [trained, *held_out]]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return folder


def outcome(folder: Path, out: Path) -> tuple[float, float]:
    """KL(policy || policy*) and the share of beta log Z that is missing, at the trained prompt."""
    policy, tokenizer, _ = load_policy(str(out), folder)
    prompt = json.loads((folder / "prompts.jsonl").read_text().split("\n")[0])["prompt"]
    tokens = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        learnt, reference = (
            model(tokens).logits[0, -1].double().log_softmax(-1)
            for model in (policy.model, policy.frozen)
        )
    wanted = reference + REWARDS / BETA
    best = BETA * wanted.logsumexp(0)
    probs = learnt.exp()
    objective = (probs * (REWARDS - BETA * (learnt - reference))).sum()
    return (probs * (learnt - wanted.log_softmax(0))).sum().item(), (1 - objective / best).item()


def learn(folder: Path, out: Path, **changes: object) -> tuple[float, float]:
    config = Config(
        model=str(folder / "model"),
        lora=0,
        prompts=str(folder / "prompts.jsonl"),
        completion=1,
        reward=(THIS,),
        gold="",
        normalise=False,
        reward_clip=100.0,
        beta=BETA,
        iterations=100,
        batch_size=256,
        micro_batch=256,
        epochs=2,
        lr=8e-3,
        value_lr=5e-2,
        evaluation_prompts=2,
        checkpoint_every=1000,
        out=str(out),
    )
    train("bandit", replace(config, **changes))
    return outcome(folder, out)


@pytest.mark.slow
@pytest.mark.parametrize("kl", ["k1", "rb"])
@pytest.mark.parametrize(("seed", "whiten"), [(0, True), (1, True), (2, False)])
def test_the_optimum_of_a_bandit_is_reached(bandit, tmp_path, kl, seed, whiten):
    away, missing = learn(bandit, tmp_path / "run", kl=kl, seed=seed, whiten=whiten)
    assert away < 0.01
    assert abs(missing) < 0.005


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "whiten"), [(0, True), (1, True), (2, False)])
def test_k3_in_the_reward_misses_it(bandit, tmp_path, seed, whiten):
    """The negative control; the command line refuses it, this goes past the command line."""
    away, missing = learn(bandit, tmp_path / "run", kl="k3", seed=seed, whiten=whiten)
    assert away > 0.1
    assert missing > 0.05


VOCABULARY, END, PAD = 4, 1, 2
PROMPT = [PAD, 0, 3]  # the first is padding
TEMPERATURE = 0.8


def gpt2(seed: int) -> GPT2LMHeadModel:
    """GPT-2 computes in float64 throughout; Llama's norms and rotations stay in float32."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=8,
            n_embd=16,
            n_layer=1,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=0.3,
            bos_token_id=END,
            eos_token_id=END,
        )
    ).eval()


class Problem:
    """Every completion of at most so many tokens, with a random reward each, in float64."""

    def __init__(self, length: int) -> None:
        reference, model = gpt2(seed=0), gpt2(seed=1)
        rng = torch.Generator().manual_seed(7)
        self.policy = Policy(model, reference).double()
        self.sequences = sorted(
            {
                sequence[: sequence.index(END) + 1] if END in sequence else sequence
                for sequence in itertools.product(range(VOCABULARY), repeat=length)
            }
        )
        self.rewards = torch.randn(len(self.sequences), generator=rng, dtype=torch.float64)
        rows = [[*PROMPT, *s, *[PAD] * (length - len(s))] for s in self.sequences]
        attention = torch.tensor([[False, True, True]]).expand(len(rows), -1)
        self.completions = cut_at_end(torch.tensor(rows), attention, [END], PAD)

    def log_probs(self, model) -> torch.Tensor:
        """[n] log-probabilities of the completions: each alone, without padding, token by token."""
        values = []
        for sequence in self.sequences:
            logits = model(torch.tensor([[*PROMPT[1:], *sequence]])).logits[0] / TEMPERATURE
            steps = logits.log_softmax(-1)[len(PROMPT) - 2 : -1]
            values.append(sum(step[token] for step, token in zip(steps, sequence, strict=True)))
        return torch.stack(values)

    def gradient(self, value: torch.Tensor) -> torch.Tensor:
        parameters = list(self.policy.model.parameters())
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])

    def of_the_loss(self, kl: str, scores: torch.Tensor, beta: float) -> torch.Tensor:
        """The gradient of PPO's loss, expected over completions of the policy."""
        config = Config(lora=0, kl=kl, beta=beta, whiten=False, lam=1.0, temperature=TEMPERATURE)
        tokens = score_tokens(self.policy, self.completions, TEMPERATURE, micro_batch=16)
        batch, kl_weight = prepare(config, self.completions, tokens, scores, beta)
        probs = self.log_probs(self.policy.model).exp().detach()
        assert probs.sum().item() == pytest.approx(1, abs=1e-12)
        total = torch.zeros((), dtype=torch.float64)
        for row, weight in enumerate(probs):
            part = batch.at(torch.tensor([row]))
            mask = part.completions.mask
            terms = loss_terms(config, self.policy, self.policy, part, mask, kl_weight)
            total = total + weight * terms.loss
        return self.gradient(total)


@pytest.mark.parametrize("kl", ["k1", "rb"])
@pytest.mark.parametrize("length", [2, 3])
def test_the_expected_gradient_of_the_loss_is_the_exact_one(kl, length):
    """Completions of every length, left-padded prompts and a temperature among it."""
    problem = Problem(length)
    ours, reference = (problem.log_probs(m) for m in (problem.policy.model, problem.policy.frozen))
    objective = (ours.exp() * (problem.rewards - BETA * (ours - reference.detach()))).sum()
    expected = problem.gradient(-objective)
    gradient = problem.of_the_loss(kl, problem.rewards, BETA)
    assert expected.norm() > 0.01
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)


def test_k3_in_the_reward_has_the_gradient_of_a_difference_of_kls():
    """Of KL(policy || reference) - KL(reference || policy): why it is refused."""
    problem = Problem(1)
    ours, reference = (problem.log_probs(m) for m in (problem.policy.model, problem.policy.frozen))
    reference = reference.detach()
    reverse = problem.gradient((ours.exp() * (ours - reference)).sum())
    forward = problem.gradient(
        (reference.exp() * (reference - problem.log_probs(problem.policy.model))).sum()
    )
    gradient = problem.of_the_loss("k3", torch.zeros_like(problem.rewards), 1.0)
    torch.testing.assert_close(gradient, reverse - forward, rtol=0, atol=1e-10)
    assert (gradient - reverse).norm() > 0.1 * reverse.norm()
