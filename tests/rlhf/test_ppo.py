"""The PPO program as a whole, and what an update does with a batch."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf import ppo
from rlhf.config import Config
from rlhf.policy import Policy, optimizer_of, with_adapter
from rlhf.rollout import Completions
from tests import tiny
from tests.helpers import (
    Processes,
    Result,
    assert_nearly_same_run,
    assert_same_run,
    last_state,
    metrics,
    refused,
)

# Rollouts of 6 completions in micro-batches of 2: on two processes 3 each, in parts of 2 and 1.
TINY = """
    smoke --iterations 3 --batch-size 6 --minibatches 2 --completion 8 --lr 1e-2
    --evaluation-prompts 4
""".split()
END = 1  # of tests.tiny
CASES = {
    "k1": [],
    "rb": ["--kl", "rb", "--beta", "0.5"],
    "adaptive": ["--kl-target", "0.5", "--kl-horizon", "100", "--early-stop", "0.5"],
    "whole": ["--lora", "0", "--critic", "separate", "--reward-clip", "1", "--missing-eos", "0.5"],
}


def vowels(completions: list[str], **_: Any) -> list[float]:
    """A reward that a tiny model can learn: the share of an o."""
    return [text.count("o") / max(1, len(text)) for text in completions]


def broken(completions: list[str], **_: Any) -> list[float]:
    return [float("nan")] * len(completions)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a tiny model, prompts of one to five words and a reward."""
    root, rng = tmp_path_factory.mktemp("rlhf"), random.Random(0)
    prompts = root / "prompts.jsonl"
    lines = [{"prompt": " ".join(rng.choices(tiny.WORDS, k=rng.randint(1, 5)))} for _ in range(60)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        "--model",
        str(tiny.write_model(root / "model")),
        "--prompts",
        str(prompts),
        "--data",
        str(root / "data"),
        "--reward",
        f"{__name__}:vowels",
    ]


def train(processes: Processes, *argv: object, fault: str = "", ranks: int = 1) -> Result:
    return processes(*argv, program="rlhf.ppo", fault=fault, ranks=ranks)


@pytest.fixture(scope="module")
def whole(
    inputs: list[str], tmp_path_factory: pytest.TempPathFactory, processes: Processes
) -> Path:
    run = tmp_path_factory.mktemp("rlhf") / "whole"
    result = train(processes, *TINY, *inputs, "--out", run)
    assert result.code == 0, result.err
    assert result.err == ""
    return run


def test_what_a_run_leaves(whole: Path, tmp_path: Path, processes: Processes) -> None:
    assert {p.name for p in whole.iterdir()} == set(
        """
        config.json env.json metrics.jsonl summary.json checkpoints model pictures
    """.split()
    )
    lines = metrics(whole)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[0]["objective/kl"] < 1e-8
    assert lines[2]["objective/kl"] > 0
    reported = json.loads((whole / "summary.json").read_text())["evaluation"]
    config = json.loads((whole / "config.json").read_text())["config"]
    out = tmp_path / "again.json"
    argv = [
        "--model",
        whole,
        "--count",
        "4",
        "--reward",
        *config["reward"],
        "--data",
        config["data"],
        "--json",
        out,
    ]
    result = processes(*argv, program="rlhf.evaluate")
    assert result.code == 0, result.err
    assert result.err == ""
    measured = json.loads(out.read_text())["metrics"]
    assert measured["samples"] == reported["samples"]
    for name in ("kl", "kl_k1", "kl_per_token"):
        assert measured[name] == pytest.approx(reported[name], rel=1e-5)


def test_a_checkpoint_holds_what_is_trained_and_no_more(whole: Path) -> None:
    weights, state = last_state(whole)
    trained = [name for name in weights if name.startswith("trained")]
    assert trained
    assert all("lora" in name or "value" in name for name in trained)
    averages = [name for name in state if name.endswith("/exp_avg")]
    assert len(averages) == len(trained)
    assert all(any(name in average for average in averages) for name in trained)


def test_steps_are_rollouts_times_passes_times_minibatches(
    inputs: list[str], tmp_path: Path, processes: Processes
) -> None:
    for minibatches, micro_batch in ((1, 1), (2, 6), (3, 2)):
        run = tmp_path / f"{minibatches}-{micro_batch}"
        argv = [*TINY, *inputs, "--minibatches", minibatches, "--micro-batch", micro_batch]
        assert train(processes, *argv, "--epochs", "4", "--out", run).code == 0
        _, state = last_state(run)
        taken = {int(value) for name, value in state.items() if name.endswith("/step")}
        assert taken == {3 * 4 * minibatches}


@pytest.mark.parametrize("case", CASES)
def test_stopped_after_a_rollout(
    case: str, inputs: list[str], tmp_path: Path, processes: Processes
) -> None:
    argv = [*TINY, *inputs, *CASES[case], "--checkpoint-every", "3"]
    assert train(processes, *argv, "--out", tmp_path / "whole").code == 0
    stopped = train(processes, *argv, "--out", tmp_path / "cut", fault="signal:SIGTERM:2")
    assert stopped.code == 143
    assert train(processes, "--resume", tmp_path / "cut").code == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(
    case: str, inputs: list[str], tmp_path: Path, processes: Processes
) -> None:
    for ranks in (1, 2):
        argv = [*TINY, *inputs, *CASES[case], "--out", tmp_path / str(ranks)]
        result = train(processes, *argv, ranks=ranks)
        assert result.codes == [0] * ranks, result.errs
    assert_nearly_same_run(tmp_path / "1", tmp_path / "2", absolute=1e-5)


def test_accumulated_equals_one_big_batch(
    inputs: list[str], tmp_path: Path, processes: Processes
) -> None:
    """Completions differ in length, so a mean of means would differ."""
    for size in (1, 6):
        argv = [*TINY, *inputs, "--completion", "30", "--micro-batch", size]
        assert train(processes, *argv, "--out", tmp_path / str(size)).code == 0
    lengths = {line["completions/mean_length"] for line in metrics(tmp_path / "1")}
    assert min(lengths) < 30
    assert_nearly_same_run(tmp_path / "1", tmp_path / "6", absolute=1e-5)


def test_without_a_learning_rate_nothing_moves(
    inputs: list[str], tmp_path: Path, processes: Processes
) -> None:
    argv = [*TINY, *inputs, "--lr", "1e-30", "--value-lr", "1e-30", "--epochs", "3"]
    assert train(processes, *argv, "--out", tmp_path / "run").code == 0
    for line in metrics(tmp_path / "run"):
        assert line["clip_fraction"] == 0
        assert 0 <= line["objective/kl"] < 1e-8
        assert abs(line["objective/kl_k1"]) < 1e-4
        assert line["kl_old_new"] < 1e-10


def test_the_adaptive_coefficient_brings_the_kl_back_to_its_target(
    inputs: list[str], tmp_path: Path, processes: Processes
) -> None:
    argv = [
        *TINY,
        *inputs,
        "--iterations",
        "75",
        "--batch-size",
        "64",
        "--micro-batch",
        "64",
        "--minibatches",
        "1",
        "--completion",
        "4",
        "--lr",
        "1e-2",
        "--beta",
        "0.1",
        "--kl-target",
        "0.3",
        "--kl-horizon",
        "200",
        "--checkpoint-every",
        "100",
    ]
    assert train(processes, *argv, "--out", tmp_path / "run").code == 0
    lines = metrics(tmp_path / "run")
    assert max(line["objective/kl"] for line in lines) > 1.5  # a beta of 0.1 is far too small
    last = [line["objective/kl"] for line in lines[-10:]]
    assert 0.15 < sum(last) / len(last) < 0.6


def test_a_largest_kl_ends_the_run(inputs: list[str], tmp_path: Path, processes: Processes) -> None:
    argv = [*TINY, *inputs, "--iterations", "40", "--max-kl", "0.2", "--lr", "3e-2"]
    result = train(processes, *argv, "--out", tmp_path / "run")
    assert result.code == 0
    assert "--max-kl 0.2: ended here" in result.out
    *before, last = [line["objective/kl"] for line in metrics(tmp_path / "run")]
    assert last > 0.2 >= max(before)


OPTIONS: dict[str, tuple[list[str], list[str]]] = {
    "k3": (["--kl", "k3"], ["--kl k3: refused", "KL(reference || policy)"]),
    "k2": (["--kl", "k2"], ["--kl k2: refused", "biased"]),
    "minibatches": (["--minibatches", "4"], ["--minibatches 4: must divide --batch-size 6"]),
    "adaptive from 0": (["--beta", "0", "--kl-target", "1"], ["--beta 0.0: an adaptive"]),
    "layers": (["--lora-targets", "query"], ["--lora-targets query"]),
    "model": (["--model", "nobody/nothing"], ["--model nobody/nothing", "the Hub"]),
    "reward": (["--reward", "nobody/nothing"], ["--reward nobody/nothing", "the Hub"]),
    "prompts": (["--prompts", "nobody/nothing"], ["--prompts nobody/nothing", "the Hub"]),
    "long": (["--max-prompt", "2"], ["more than the 2 allowed"]),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case: str, inputs: list[str], tmp_path: Path, processes: Processes) -> None:
    argv, words = OPTIONS[case]
    refused(train(processes, *TINY, *inputs, *argv, "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


def test_fsdp(inputs: list[str], tmp_path: Path, processes: Processes) -> None:
    result = train(processes, *TINY, *inputs, "--out", tmp_path / "run", ranks=2, fault="fsdp")
    refused(result, "rlhf.ppo: samples from whole weights, which FSDP")


def test_a_reward_that_is_no_number(
    inputs: list[str], tmp_path: Path, processes: Processes
) -> None:
    argv = [*TINY, *inputs, "--reward", f"{__name__}:broken", "--out", tmp_path / "run"]
    refused(train(processes, *argv), "broken", "nan")


# -- an update in this process --------------------------------------------------------------------


def a_batch(answers: list[list[int]], width: int = 32) -> ppo.Batch:
    """Completions of two prompts of one token each; advantages are one."""
    tokens = torch.tensor([[5, *row] for row in answers])
    mask = torch.ones(len(answers), len(answers[0])).bool()
    zeros = torch.zeros(mask.shape)
    ended = torch.tensor([END in row for row in answers])
    completions = Completions(tokens, torch.ones_like(tokens).bool(), mask, ended)
    return ppo.Batch(completions, zeros, zeros, zeros + 1, zeros, torch.zeros(*mask.shape, width))


def a_policy() -> Policy:
    return Policy(with_adapter(tiny.llama(), 4, ("q_proj", "v_proj")))


def test_the_end_of_a_completion_is_trained() -> None:
    """Only the advantage of the end-of-text is not zero: its probability rises, all the same."""
    policy, config = a_policy(), Config(batch_size=1, epochs=30)
    batch = a_batch([[7, END]])
    batch.advantage[0, 0] = 0
    before = _log_prob_of_the_end(policy, batch)
    batch.log_prob.copy_(before)
    optimizer = optimizer_of(policy, 1e-2, 1e-2)
    ppo.update(config, Accelerator(cpu=True), policy, policy, optimizer, batch, 0.0, 0)
    assert _log_prob_of_the_end(policy, batch)[0, 1] > before[0, 1] + 0.1


@torch.no_grad()
def _log_prob_of_the_end(policy: Policy, batch: ppo.Batch) -> Tensor:
    completions = batch.completions
    states, head, _ = policy(completions.tokens, completions.attention, completions.prompt)
    return ppo.log_probs(ppo.logits_of(states, head, 1.0), completions.sampled)


def test_gradients_are_clipped_and_a_wrong_ratio_is_a_bug() -> None:
    policy, batch = a_policy(), a_batch([[7, 8], [9, 10]])
    norms: list[Tensor] = []

    class Watching(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override] # noqa: ARG002
            gradients = [p.grad for p in self.param_groups[0]["params"]]
            norms.append(torch.nn.utils.get_total_norm(gradients))

    optimizer = Watching(optimizer_of(policy, 0.0, 0.0).param_groups, lr=0.0)
    config = Config(batch_size=2, epochs=1, max_gradient=1e-3)
    accelerator = Accelerator(cpu=True)
    with pytest.raises(RuntimeError, match="the ratios are not 1"):
        ppo.update(config, accelerator, policy, policy, optimizer, batch, 0.0, 0)
    batch.log_prob.copy_(_log_prob_of_the_end(policy, batch))
    optimizer.zero_grad()
    numbers = ppo.update(config, accelerator, policy, policy, optimizer, batch, 0.0, 0)
    assert numbers["policy_gradient_norm"] > 1e-2
    assert norms[-1] == pytest.approx(1e-3, rel=1e-3)


def test_bf16_computes_in_bf16(inputs: list[str], tmp_path: Path, processes: Processes) -> None:
    for precision in ("no", "bf16"):
        argv = [*TINY, *inputs, "--mixed-precision", precision, "--out", tmp_path / precision]
        assert train(processes, *argv).code == 0
    full, half = (metrics(tmp_path / p)[0]["objective/entropy_per_token"] for p in ("no", "bf16"))
    assert full != half
    assert full == pytest.approx(half, rel=0.02)
