from contextlib import nullcontext

import pytest
import torch

from distillation import teacher as teachers
from distillation.data import jittered, padded, shifts
from distillation.model import Classifier
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
    """What the student is told about its jittered digit is what the teacher says of that digit."""
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


def test_a_cache_comes_back_exactly(teacher, images, tmp_path):
    path = tmp_path / "new" / "logits.safetensors"
    mark = teachers.fingerprint(teacher, images, shifts(1), "fp32")
    values = logits(teacher, images, 1)
    teachers.write_cache(path, values, mark)
    assert torch.equal(teachers.read_cache(path, mark), values)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_foreign_cache_is_refused(teacher, images, tmp_path):
    path = tmp_path / "logits.safetensors"
    mark = teachers.fingerprint(teacher, images, shifts(1), "fp32")
    teachers.write_cache(path, logits(teacher, images, 1), mark)
    other = Classifier("conv-2-3-2", dropout=0.5)
    moved = images.clone()
    moved[17, 300] ^= 1
    others = [
        teachers.fingerprint(other, images, shifts(1), "fp32"),
        teachers.fingerprint(teacher, moved, shifts(1), "fp32"),
        teachers.fingerprint(teacher, images[:-1], shifts(1), "fp32"),
        teachers.fingerprint(teacher, images, shifts(2), "fp32"),
        teachers.fingerprint(teacher, images, shifts(1), "bf16"),
    ]
    assert len({mark, *others}) == 6
    for foreign in others:
        with pytest.raises(UserError, match=r"--teacher-logits .*another teacher, data set"):
            teachers.read_cache(path, foreign)


def test_a_damaged_cache_is_named(tmp_path):
    path = tmp_path / "logits.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"logits\.safetensors"):
        teachers.read_cache(path, "")
