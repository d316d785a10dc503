import pytest
import torch

from distillation.data import jittered, padded, shift, shifts, transfer_set
from shared.data.splits import Split
from shared.errors import UserError


@pytest.fixture
def images():
    rng = torch.Generator().manual_seed(0)
    return torch.randint(256, (5, 784), generator=rng).to(torch.uint8)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (1, 0), (0, -1), (-2, 2), (2, 1)])
def test_a_shift_pixel_by_pixel(images, down, right):
    square, moved = images.view(-1, 28, 28), shift(images, down, right).view(-1, 28, 28)
    for row in range(28):
        for column in range(28):
            r, c = row - down, column - right
            inside = 0 <= r < 28 and 0 <= c < 28
            expected = square[:, r, c] if inside else torch.zeros(5, dtype=torch.uint8)
            assert torch.equal(moved[:, row, column], expected)


def test_jitter_is_one_of_the_shifts(images):
    rows, rng = torch.tensor([3, 0, 3, 1] * 50), torch.Generator().manual_seed(1)
    x, chosen = jittered(padded(images), rows, 2, rng)
    assert set(chosen.tolist()) == set(range(25))
    for pixels, row, number in zip(x, rows, chosen, strict=True):
        expected = shift(images[row : row + 1], *shifts(2)[number])[0].float() / 255
        assert torch.equal(pixels, expected)


def test_no_jitter(images):
    x, chosen = jittered(padded(images), torch.arange(5), 0, torch.Generator())
    assert torch.equal(x, images.float() / 255)
    assert not chosen.any()


def test_transfer_set(images):
    labels = torch.tensor([3, 7, 8, 3, 1])
    data = Split(images, labels, images, labels)
    kept = transfer_set(data, "78")
    assert kept.labels.tolist() == [7, 8]
    assert torch.equal(kept.images, images[1:3])
    assert torch.equal(kept.unseen_images, images)
    assert transfer_set(data, "0123456789").labels.tolist() == labels.tolist()
    with pytest.raises(UserError, match="--transfer 9"):
        transfer_set(data, "9")
