from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from distillation import teacher as teachers
from distillation.config import Config
from distillation.data import jittered, padded, shifts
from distillation.model import Classifier
from distillation.teacher import soft_targets
from shared.data.splits import Split
from shared.errors import UserError


@pytest.fixture
def images():
    rng = torch.Generator().manual_seed(0)
    return torch.randint(256, (300, 784), generator=rng).to(torch.uint8)


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return Classifier("conv-2-3-2", dropout=0.5).eval()


def logits(teacher, images, radius, average=False):
    grid = shifts(radius)
    return teachers.logits(teacher, images, grid, average=average, autocast=nullcontext())


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_cached_equals_live(radius, teacher, images):
    """The target of a jittered digit is what the teacher predicts for that digit."""
    cached = logits(teacher, images, radius)
    assert cached.shape == ((2 * radius + 1) ** 2, 300, 10)
    rows = torch.randperm(300)[:40]
    x, chosen = jittered(padded(images), rows, radius, torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(cached[chosen, rows], teacher(x), atol=1e-5)


def test_averaged_is_the_mean_over_shifts(teacher, images):
    mean = logits(teacher, images, 1, average=True)
    assert torch.allclose(mean[0], logits(teacher, images, 1).mean(0), atol=1e-5)


def test_the_teacher_drops_nothing(teacher, images):
    teacher.train()
    assert torch.equal(logits(teacher, images, 0), logits(teacher, images, 0))


def targets(teacher, images, path, **options):
    """The soft targets of 300 digits, by default under nine shifts, kept in a file."""
    config = Config(targets="matching", jitter=1, teacher_logits=str(path))
    labels = torch.zeros(len(images), dtype=torch.long)
    data = Split(images, labels, images[:1], labels[:1])
    return soft_targets(replace(config, **options), Accelerator(cpu=True), teacher, data, path)


def test_targets_come_back_from_their_file_exactly(teacher, images, tmp_path, monkeypatch):
    path = tmp_path / "new" / "logits.safetensors"
    first = targets(teacher, images, path)
    assert torch.equal(first, logits(teacher, images, 1))
    monkeypatch.setattr(teachers, "logits", None)  # nothing is computed again
    assert torch.equal(targets(teacher, images, path), first)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "changed", ["teacher", "pixel", "digits", "shifts", "average", "precision"]
)
def test_the_file_of_other_targets_is_refused(changed, teacher, images, tmp_path):
    path, options = tmp_path / "logits.safetensors", {}
    targets(teacher, images, path)
    match changed:
        case "teacher":
            torch.manual_seed(1)
            teacher = Classifier("conv-2-3-2", dropout=0.5)
        case "pixel":
            images = images.clone()
            images[17, 300] ^= 1
        case "digits":
            images = images[:-1]
        case "shifts":
            options = {"jitter": 2}
        case "average":
            options = {"targets": "averaged", "target_radius": 1}
        case _:
            options = {"mixed_precision": "bf16"}
    with pytest.raises(UserError, match=r"--teacher-logits .*another teacher, other data"):
        targets(teacher, images, path, **options)
