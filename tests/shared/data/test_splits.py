import pytest
import torch

from shared.data.mnist import Digits
from shared.data.splits import split


def digits():
    train, test = torch.arange(10), torch.arange(100, 104)
    return Digits(train[:, None].expand(10, 784), train, test[:, None].expand(4, 784), test)


@pytest.mark.parametrize(
    ("arguments", "seen", "unseen"),
    [
        ((0, 0, 0), range(10), range(100, 104)),
        ((3, 0, 0), range(7), range(7, 10)),
        ((0, 5, 2), range(5), range(100, 102)),
        ((3, 5, 2), range(5), range(7, 9)),
    ],
)
def test_split_never_shows_what_it_holds_out(arguments, seen, unseen):
    parts = split(digits(), *arguments)
    assert parts.labels.tolist() == list(seen)
    assert parts.unseen_labels.tolist() == list(unseen)
    assert parts.images[:, 0].tolist() == list(seen)
    assert parts.unseen_images[:, 0].tolist() == list(unseen)
    assert parts.images.shape == (len(seen), 784)
