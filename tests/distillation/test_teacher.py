from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from distillation import teacher as teachers
from distillation.config import Config
from distillation.data import jittered, padded, shifts
from distillation.model import Classifier
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
    """The target of a jittered digit is the teacher's output for that very digit."""
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


def soft_targets(teacher, images, folder, config):
    data = Split(images, torch.zeros(len(images)), images[:1], torch.zeros(1))
    return teachers.soft_targets(config, Accelerator(cpu=True), teacher, data, folder)


def test_a_cache_comes_back_exactly(teacher, images, tmp_path):
    config = Config(targets="matching", jitter=1)
    values = logits(teacher, images, 1)
    for _ in ("writes it", "reads it"):
        assert torch.equal(soft_targets(teacher, images, tmp_path / "new", config), values)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["teacher_logits.safetensors"]


def test_a_foreign_cache_is_refused(teacher, images, tmp_path):
    path = tmp_path / "logits.safetensors"
    config = Config(targets="matching", jitter=1, teacher_logits=str(path))
    soft_targets(teacher, images, tmp_path, config)
    before = path.read_bytes()
    torch.manual_seed(1)
    other = Classifier("conv-2-3-2", dropout=0.5)
    moved = images.clone()
    moved[17, 300] ^= 1
    for network, digits, changed in (
        (other, images, config),
        (teacher, moved, config),
        (teacher, images[:-1], config),
        (teacher, images, replace(config, jitter=2)),
        (teacher, images, replace(config, targets="averaged")),
        (teacher, images, replace(config, mixed_precision="bf16")),
    ):
        with pytest.raises(UserError, match=r"--teacher-logits .*another teacher, other data"):
            soft_targets(network, digits, tmp_path, changed)
    assert path.read_bytes() == before


def test_a_damaged_cache_is_named(teacher, images, tmp_path):
    path = tmp_path / "logits.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"logits\.safetensors: cannot be read"):
        soft_targets(teacher, images, tmp_path, Config(teacher_logits=str(path)))
