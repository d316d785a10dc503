"""Options and presets of distillation on digits. One dial: ``--temperature``."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, NamedTuple

from distillation.data import PAD
from distillation.model import LAYERS
from distillation.objective import Objective
from shared.config import Between, Count, CountOrZero, NonNegative, Positive, RunConfig, option

Share = Annotated[float, Between(0, 1)]
Pixels = Annotated[int, Between(0, PAD)]
Role = Literal["teacher", "baseline", "student"]


class Recipe(NamedTuple):
    """The settings that train one network; baseline and student differ in alpha alone."""

    layers: str
    dropout: float
    input_dropout: float
    epochs: int
    lr: float
    jitter: int
    alpha: float


@dataclass(frozen=True)
class Config(RunConfig):
    """Train a teacher, a student alone and the same student distilled, on MNIST."""

    temperature: Positive = 20.0
    """T, by which the logits of teacher and student are divided in the loss (Hinton et al. 2015:
    20; for students of 30 units 2.5 to 4)."""
    alpha: Share = 1.0
    """Weight of T^2 times the divergence; 1 - alpha that of the cross-entropy with the labels."""
    objective: Objective = "forward"
    """forward: KL(teacher || student). reverse: KL(student || teacher). js: Jensen-Shannon.
    skew: KL(teacher || mixture of both). decoupled: of target and non-targets apart."""
    skew: Share = 0.1
    """Objective `skew`: the teacher's share in the mixture (Ko et al. 2024: 0.1)."""
    nontarget: NonNegative = 8.0
    """Objective `decoupled`: weight of the KL of the wrong classes (Zhao et al. 2022: 1 to 8)."""

    stages: Literal["all", "teacher", "student"] = "all"
    """all: teacher, baseline and distilled student. teacher: it alone. student: it alone, from
    --teacher; with --alpha 0 that is a baseline."""
    teacher: str = ""
    """Model folder or run folder of a trained teacher; `pretrained` is the committed one. Empty:
    train one."""
    targets: Literal["clean", "matching", "averaged"] = "averaged"
    """The teacher's view of a digit: as it is; shifted as the student sees it; or all shifts up to
    --target-radius, the logits averaged."""
    target_radius: Pixels = 1
    """Targets `averaged`: largest shift, in pixels."""
    teacher_logits: str = ""
    """File of the teacher's cached logits, written if it is not there. Empty: in the run folder."""

    teacher_layers: str = "conv-16-32-32"
    """conv- and the channels of three convolutions, or the units of an MLP's hidden layers
    (Hinton et al. 2015: 1200-1200)."""
    dropout: Share = 0.2
    """Share of the teacher's hidden units dropped; of a convolutional one before its last layer
    (Hinton et al. 2015: 0.5)."""
    input_dropout: Share = 0.0
    """Share of the teacher's pixels dropped (Hinton et al. 2015: 0.2)."""
    teacher_epochs: Count = 12
    """The teacher's passes over the training digits."""
    teacher_lr: Positive = 2e-3
    """The teacher's peak learning rate."""
    teacher_jitter: Pixels = 2
    """Largest random shift of the teacher's digits, in pixels (Hinton et al. 2015: 2)."""

    student_layers: str = "800-800"
    """The student's; without dropout (Hinton et al. 2015: 800-800, 300-300, 30-30)."""
    epochs: Count = 40
    """The students' passes over the training digits."""
    lr: Positive = 3e-3
    """The students' peak learning rate of Adam; linear warm-up, then a cosine to zero."""
    jitter: Pixels = 2
    """Largest random shift of the students' digits, in pixels (Hinton et al. 2015: 0)."""
    transfer: str = "0123456789"
    """Classes that the students see (Hinton et al. 2015: 012456789 and 78)."""

    batch_size: Count = 250
    """Digits per step over all processes together."""
    warmup: CountOrZero = 200
    """Steps of linear learning-rate warm-up."""
    clip: Positive = 1000.0
    """Largest gradient norm; longer gradients are scaled down to it."""

    validation: CountOrZero = 0
    """Training digits held out and evaluated instead of the test digits; for choosing options."""
    train_size: CountOrZero = 0
    """Number of training digits to use; 0: all."""
    test_size: CountOrZero = 0
    """Number of digits to evaluate; 0: all."""
    evaluate_every: Count = 5
    """Epochs between counts of the errors on unseen digits."""

    @classmethod
    def stored(cls, values: Mapping[str, Any]) -> "Config":
        """From a saved configuration; options that no longer exist are ignored."""
        names = {field.name for field in fields(cls)} & values.keys()
        return cls(**{name: values[name] for name in names})

    def roles(self) -> tuple[Role, ...]:
        """The networks to train, in this order; the run folder is that of the last one."""
        if self.stages != "all":
            return (self.stages,)
        return ("baseline", "student") if self.teacher else ("teacher", "baseline", "student")

    def role_of(self, folder: str) -> Role:
        """The network whose run folder has this name within the run, or is the run."""
        return next((role for role in self.roles()[:-1] if role == folder), self.roles()[-1])

    def recipe(self, role: Role) -> Recipe:
        if role == "teacher":
            return Recipe(
                self.teacher_layers,
                self.dropout,
                self.input_dropout,
                self.teacher_epochs,
                self.teacher_lr,
                self.teacher_jitter,
                alpha=0.0,
            )
        return Recipe(
            self.student_layers,
            0.0,
            0.0,
            self.epochs,
            self.lr,
            self.jitter,
            alpha=0.0 if role == "baseline" else self.alpha,
        )

    def conflicts(self) -> list[str]:
        """Combinations without a meaning, each with what to change."""
        problems = []
        for name in ("student_layers", "teacher_layers"):
            if not LAYERS.fullmatch(value := getattr(self, name)):
                problems.append(f"{option(name)} {value}: must be like 800-800 or conv-16-32-32")
        for name in ("dropout", "input_dropout", "skew"):
            if getattr(self, name) == 1:
                problems.append(f"{option(name)} 1.0: must be below 1")
        if not self.transfer or set(self.transfer) - set("0123456789"):
            problems.append(f"--transfer {self.transfer!r}: must be classes, such as 012456789")
        if self.stages == "teacher" and self.teacher:
            problems.append(f"--teacher {self.teacher}: --stages teacher trains one")
        if self.stages == "student" and not self.teacher and self.alpha > 0:
            problems.append("--stages student: needs --teacher, or --alpha 0")
        if self.validation >= 60_000:
            problems.append(
                f"--validation {self.validation}: must be below the 60000 training digits"
            )
        return problems


PRESETS = {
    "smoke": Config(
        train_size=3000,
        test_size=500,
        teacher_layers="conv-4-8-8",
        teacher_epochs=4,
        teacher_jitter=1,
        student_layers="64-64",
        epochs=6,
        jitter=1,
        batch_size=100,
        warmup=10,
        evaluate_every=1,
    ),
    "default": Config(),
    "paper": Config(
        teacher_layers="1200-1200",
        dropout=0.5,
        input_dropout=0.2,
        teacher_epochs=200,
        teacher_lr=1e-3,
        targets="clean",
        jitter=0,
        epochs=100,
        lr=1e-3,
    ),
    "self": Config(teacher_layers="800-800", dropout=0.0, teacher_epochs=40, teacher_lr=3e-3),
}
