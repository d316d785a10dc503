"""Options and presets of language-model distillation. The one to try first is ``--objective``."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from distillation.lm.objective import Logits, Objective
from shared.config import Between, Count, CountOrZero, Positive, RunConfig

Share = Annotated[float, Between(0, 1)]
LAYERS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


@dataclass(frozen=True)
class Config(RunConfig):
    """Train a student of fewer layers to predict what its teacher predicts, token by token."""

    objective: Objective = "forward"
    """forward: KL(teacher || student). reverse: KL(student || teacher). js: Jensen-Shannon.
    skew: KL(teacher || mixture of both). ce: cross-entropy with the text, no teacher."""
    temperature: Positive = 1.0
    """T, by which the logits of both are divided; the loss is T^2 times the divergence."""
    skew: Share = 0.1
    """Objective `skew`: the teacher's share in the mixture (Ko et al. 2024: 0.1)."""

    teacher: str = "smollm2"
    """smollm2: SmolLM2-135M-Instruct, without a Hub. Or a model folder, or a model of the Hub."""
    layers: str = "0-11,27-29"
    """The teacher's layers that the student starts with, counted from 0; embeddings and output
    weights are the teacher's too. For models built like Llama."""
    student: str = ""
    """Start from this model folder or model of the Hub instead; a folder with a configuration but
    no weights starts at random, and needs --train-embeddings, or these stay random. Its vocabulary
    must be the teacher's."""
    train_embeddings: bool = False
    """Also train the embeddings and, where they are tied to them, the output weights."""

    text: str = "brown"
    """brown: the Brown corpus. Or a text file (documents between blank lines), a folder of .txt
    files, or a data set of the Hub with a column `text`. Every tenth document is held out."""
    completions: Literal["text", "teacher"] = "text"
    """What follows the prompt of --prompt tokens in training: the text itself, or a continuation
    sampled once from the teacher, of the blocks that the run will use."""
    on_policy: Share = 0.0
    """Share of the steps whose completions are sampled from the current student (Agarwal et al.
    2024, lambda)."""
    length: Count = 128
    """Predictions in a block of text."""
    prompt: CountOrZero = 0
    """Tokens at the start of a block that are given and not counted in the loss."""

    logits: Logits = "chunked"
    """chunked: computed from hidden states for a few positions at a time, never stored. full: of
    all positions. topk: of the teacher its --topk largest and one class for the rest."""
    topk: Count = 64
    """Logits `topk`: how many of the teacher's probabilities are kept."""
    teacher_cache: str = ""
    """File with the teacher's predictions in the training blocks, written if it does not exist.
    Empty: the teacher runs at every step."""

    epochs: Count = 22
    """Evaluations, each after --epoch-blocks blocks."""
    epoch_blocks: Count = 256
    """Blocks between evaluations; the text is read again when it is used up."""
    train_blocks: CountOrZero = 0
    """Number of blocks to train on, the first of every document before its second; 0: all."""
    batch_size: Count = 4
    """Blocks per step over all processes together."""
    micro_batch: Count = 8
    """Blocks that a process computes at a time; their gradients add up to the step's."""
    optimizer: Literal["adam", "muon"] = "adam"
    """muon: orthogonalised momentum for the layers' matrices and Adam for the rest. FSDP and
    DeepSpeed shard matrices: use adam there."""
    muon_lr: Positive = 0.01
    """Peak learning rate of Muon."""
    lr: Positive = 5e-4
    """Peak learning rate of Adam; linear warm-up, then a cosine to zero."""
    warmup: CountOrZero = 10
    """Steps of linear learning-rate warm-up."""
    clip: Positive = 1.0
    """Largest gradient norm; longer gradients are scaled down to it."""
    evaluation_blocks: Count = 50
    """Blocks of held-out text that evaluations use, spread over the held-out documents."""
    backend: Literal["zoo", "trl"] = "zoo"
    """zoo: our loop. trl: TRL's DistillationTrainer, on-policy always, with the same data,
    student and evaluation."""

    def conflicts(self) -> list[str]:
        """Combinations without a meaning, each with what to change."""
        problems = []
        if not LAYERS.fullmatch(self.layers):
            problems.append(f"--layers {self.layers!r}: must be numbers and ranges like 0-11,27-29")
        if self.prompt >= self.length:
            problems.append(f"--prompt {self.prompt}: must be below --length {self.length}")
        samples = self.completions == "teacher" or self.on_policy or self.backend == "trl"
        if samples and self.prompt == 0:
            problems.append("--prompt 0: sampled completions need a prompt of at least 1 token")
        if self.objective == "skew" and self.skew == 1:
            problems.append("--skew 1: must be below 1")
        if self.logits == "topk" and self.objective not in ("forward", "ce"):
            problems.append(f"--logits topk: only with --objective forward, not {self.objective}")
        if self.objective == "ce" and self.on_policy:
            problems.append("--objective ce: learns from text, not from the student's own samples")
        if self.teacher_cache and (self.on_policy == 1 or self.objective == "ce"):
            problems.append("--teacher-cache: there is nothing to cache in this run")
        return problems + (self._conflicts_of_trl() if self.backend == "trl" else [])

    def _conflicts_of_trl(self) -> list[str]:
        problems = []
        if self.objective not in ("forward", "reverse", "js"):
            problems.append(f"--objective {self.objective}: --backend trl has forward, reverse, js")
        if self.on_policy != 1:
            problems.append(f"--on-policy {self.on_policy}: --backend trl needs 1")
        if self.optimizer != "adam":
            problems.append(f"--optimizer {self.optimizer}: --backend trl has adam")
        return problems


PRESETS = {
    "smoke": Config(
        epochs=2,
        epoch_blocks=8,
        batch_size=4,
        micro_batch=4,
        length=32,
        warmup=1,
        evaluation_blocks=4,
        mixed_precision="bf16",
        checkpoint_every=2,
    ),
    "default": Config(train_blocks=5632, keep=1),
    "paper": Config(
        mixed_precision="bf16",
        epochs=40,
        epoch_blocks=3072,
        batch_size=64,
        length=256,
        warmup=50,
        train_embeddings=True,
    ),
}
