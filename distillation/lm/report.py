"""The lines at a run's start and the files at its end: model folder, picture, summary."""

from typing import Any

from distillation.lm import pictures
from distillation.lm.config import Config
from distillation.lm.evaluate import evaluate, headline
from distillation.lm.metrics import distance
from distillation.lm.model import common_part
from distillation.lm.teacher import TeacherData
from shared.language_models.causal import LanguageModel
from shared.run import report
from shared.run.folder import read_metrics
from shared.run.run import Run


def print_run(run: Run, config: Config, student: LanguageModel, data: TeacherData) -> None:
    """Print the batch arithmetic, the sizes of both models and the units."""
    size = config.batch_size
    total = sum(p.numel() for p in student.parameters())
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    of_teacher = sum(p.numel() for p in data.teacher.parameters())
    where = f"layers {config.layers} of it" if not config.student else config.student
    report.print_setup(
        run,
        teacher=f"{config.teacher}, {of_teacher:,} parameters",
        student=f"{where}, {total:,} parameters, {trained:,} of them trained; "
        f"objective {config.objective}, temperature {config.temperature:g}",
        **({"vocabulary": common_part(student)} if student.common is not None else {}),
        data=f"{len(data.blocks.tokens):,} blocks of {config.length}, "
        f"{int(data.blocks.counts.sum()):,} tokens; {len(data.unseen.tokens)} held-out blocks",
        batch=f"{report.shares(size).replace(' =', ' blocks =', 1)}; "
        f"{-(-config.epoch_blocks // size) * config.epochs} steps",
        units="nats per token, unless said",
    )


def unseen_metrics(student: LanguageModel, data: TeacherData) -> dict[str, float]:
    """Distance from the teacher on the held-out blocks, in the precision of training."""
    with data.accelerator.autocast():
        result = distance(student, data.teacher, data.unseen, data.unseen_predictions)
    names = """kl_teacher_student kl_teacher_student_standard_error kl_student_teacher
        agreement cross_entropy_student""".split()
    return {f"unseen_{name}": result[name] for name in names}


def write_outputs(run: Run, config: Config, student: LanguageModel, data: TeacherData) -> None:
    """Evaluate the trained student in float32 and write model/, pictures/, summary.json."""
    run.say("evaluating ...")
    seconds, records = round(run.elapsed(), 1), read_metrics(run.folder)
    with report.pictures_folder(run) as folder:
        measured = [line for line in records if "unseen_agreement" in line]  # all but some of TRL's
        pictures.curves({config.objective: measured}, folder / "curves.png")
    metrics = evaluate(student, data.teacher, data.tokenizer, data.unseen)
    settings = report.training_settings(run.preset, config)

    def save(path: Any) -> None:
        student.to_transformers().save_pretrained(path)
        data.tokenizer.save_pretrained(path)

    report.write_trained(run, save, card(settings, metrics), settings, metrics)
    summary = {"steps": run.step, "training_seconds": seconds, "training": records[-1]}
    report.finish_run(
        run,
        summary | {"unseen": metrics},
        f"\n{headline(metrics)}\n\ntrained in {seconds:.0f} s, all in {run.elapsed():.0f} s; "
        f"picture in {folder}, model in {run.folder / 'model'}",
    )


def card(settings: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The model card: what it is, how it was trained, what it reached, how to load it."""
    config = settings["config"]
    names = """teacher layers student objective temperature text completions on_policy length
        epochs epoch_blocks batch_size optimizer seed""".split()
    return report.model_card(
        f"A student of {config['teacher']}, preset `{settings['preset']}` of KL Zoo",
        ["knowledge-distillation", "kl-zoo"],
        library="transformers",
        result=f"Trained with objective `{config['objective']}`. On {metrics['tokens']:,} held-out "
        f"tokens of\n{metrics['documents']} documents:\n\n```\n{headline(metrics)}\n```",
        options={name: config[name] for name in names},
        code="from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        note="Limits: trained on few tokens; it imitates its teacher's predictions and shares its "
        "errors.",
    )
