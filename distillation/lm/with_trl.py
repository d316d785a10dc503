"""The same distillation by TRL's DistillationTrainer: on-policy, our data, student, evaluation."""

import time
from pathlib import Path

import torch

from distillation.lm.config import Config
from distillation.lm.lessons import read_blocks
from distillation.lm.model import load, start_student, trainable
from distillation.lm.report import leave
from shared.folder import claim
from shared.language_model import LanguageModel

BETA = {"forward": 0.0, "js": 0.5, "reverse": 1.0}  # TRL's name for the choice of divergence


def train_with_trl(preset: str, config: Config) -> None:
    """Prompts from the text; the student completes them; the divergence as in our loop."""
    from datasets import Dataset  # seconds to import
    from trl import DistillationConfig, DistillationTrainer

    teacher, tokenizer = load("--teacher", config.teacher, Path(config.data))
    student = start_student(config.student, config.layers, teacher, Path(config.data))
    blocks, unseen = read_blocks(config, tokenizer)
    prompts = tokenizer.batch_decode(blocks.tokens[:, : config.prompt])
    folder = claim("distill-lm", preset, config)
    model = student.to_transformers()
    trainable(LanguageModel(model), config.train_embeddings)
    tokenizer.padding_side = "left"
    arguments = DistillationConfig(
        output_dir=str(folder / "trl"),
        beta=BETA[config.objective],
        temperature=config.temperature,
        max_completion_length=config.length + 1 - config.prompt,
        per_device_train_batch_size=config.batch_size,
        max_steps=-(-config.epoch_blocks // config.batch_size) * config.epochs,
        learning_rate=config.lr,
        warmup_steps=config.warmup,
        lr_scheduler_type="cosine",
        max_grad_norm=config.clip,
        bf16=config.mixed_precision == "bf16",
        use_cpu=not torch.accelerator.is_available(),  # transformers has no bf16 there without
        activation_checkpointing=False,
        save_strategy="no",
        report_to=list(config.trackers) or "none",
        seed=config.seed,
    )
    trainer = DistillationTrainer(
        model=model,
        teacher_model=teacher.to_transformers(),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )
    started = time.perf_counter()
    trainer.train()
    if trainer.is_world_process_zero():
        trained = LanguageModel(trainer.accelerator.unwrap_model(trainer.model)).cpu()
        summary = {"steps": arguments.max_steps, "log": trainer.state.log_history,
                   "training_seconds": round(time.perf_counter() - started, 1)}  # fmt: skip
        leave(folder, preset, config, trained.float(), teacher, tokenizer, unseen, summary)
