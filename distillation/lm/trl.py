"""The same distillation by TRL's DistillationTrainer: on-policy, our data, student, evaluation."""

from pathlib import Path
from statistics import mean
from typing import Any

from transformers import TrainerCallback, TrainerState
from typing_extensions import override

from distillation.lm.config import Config
from distillation.lm.data import read_blocks
from distillation.lm.model import load, start_student, trainable
from distillation.lm.report import print_run, unseen_metrics, write_outputs
from distillation.lm.teacher import TeacherData, prepare
from shared.errors import UserError
from shared.language_models.causal import LanguageModel, locate
from shared.language_models.trl import arguments, third_party, train_with
from shared.processes.distributed import world_size
from shared.processes.launch import need_whole_weights, on_main, start
from shared.run.folder import read_metrics
from shared.run.run import Run

BETA = {"forward": 0.0, "js": 0.5, "reverse": 1.0}  # TRL's name for the choice of divergence


class Unseen(TrainerCallback):
    """Adds the distance on held-out text to what the trainer logs, once an epoch of ours."""

    def __init__(self, run: Run, config: Config, student: LanguageModel, data: TeacherData) -> None:
        self.run, self.student, self.data = run, student, data
        self.size, self.every = config.batch_size, steps_of_an_epoch(config)

    @override
    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        logs: dict[str, float] = kwargs["logs"]
        if "loss" in logs and state.global_step % self.every == 0 and state.is_world_process_zero:
            lines = [*read_metrics(self.run.folder), logs][-self.every :]
            lengths = [line["completions/mean_length"] for line in lines]
            logs["tokens"] = self.size * mean(lengths)  # of a step
            logs |= unseen_metrics(self.student, self.data)
            kwargs["model"].train()


def steps_of_an_epoch(config: Config) -> int:
    return -(-config.epoch_blocks // config.batch_size)


def train_with_trl(preset: str, config: Config) -> None:
    """Prompts from the text; the student completes them; the divergence as in our loop."""
    from datasets import Dataset  # seconds to import
    from trl import DistillationConfig, DistillationTrainer

    accelerator = start(config)
    need_whole_weights(accelerator, "--backend trl: samples from")
    own = min(config.micro_batch, config.batch_size // world_size())
    if not own or config.batch_size % (own * world_size()):
        raise UserError(
            f"--batch-size {config.batch_size}: --backend trl needs a multiple of --micro-batch "
            f"{config.micro_batch} x {world_size()} processes"
        )
    on_main(accelerator, lambda: locate(config.teacher, Path(config.data)))
    teacher, tokenizer = load("--teacher", config.teacher, Path(config.data))
    started = start_student(config.student, config.layers, teacher, tokenizer, Path(config.data))
    if started.common is not None:
        raise UserError(f"--student {config.student}: --backend trl needs vocabularies of one size")
    model = started.to_transformers()
    student = LanguageModel(model).to(accelerator.device)  # with the same weights
    trainable(student, config.train_embeddings)
    blocks, unseen = on_main(accelerator, lambda: read_blocks(config, tokenizer))
    run = Run("distill-lm", preset, config, accelerator)
    data = prepare(config, run, teacher.to(accelerator.device), tokenizer, blocks, unseen)
    print_run(run, config, student, data)
    tokenizer.padding_side = "left"
    every = steps_of_an_epoch(config)
    with third_party():
        trainer = DistillationTrainer(
            model=model,
            teacher_model=teacher.to_transformers(),
            args=DistillationConfig(
                **arguments(run),
                beta=BETA[config.objective],
                temperature=config.temperature,
                max_completion_length=config.length + 1 - config.prompt,
                per_device_train_batch_size=own,
                gradient_accumulation_steps=config.batch_size // (own * world_size()),
                max_steps=every * config.epochs,
                learning_rate=config.lr,
                warmup_steps=config.warmup,
                lr_scheduler_type="cosine",
                max_grad_norm=config.clip,
                activation_checkpointing=False,  # TRL's default is True
            ),
            train_dataset=Dataset.from_dict(
                {"prompt": tokenizer.batch_decode(blocks.tokens[:, : config.prompt])}
            ),
            processing_class=tokenizer,
        )
    trainer.add_callback(Unseen(run, config, student, data))
    if train_with(trainer, run, config.checkpoint_every * every):
        write_outputs(run, config, student, data)
