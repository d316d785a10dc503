"""Which digits are trained on and which are unseen."""

from typing import NamedTuple

from torch import Tensor

from shared.data.mnist import Digits


class Split(NamedTuple):
    """Training digits, and the unseen ones that evaluation uses; grey levels as uint8 [n, 784]."""

    images: Tensor
    labels: Tensor
    unseen_images: Tensor
    unseen_labels: Tensor


def split(digits: Digits, validation: int, train_size: int, test_size: int) -> Split:
    """Hold ``validation`` training digits out as the unseen ones; 0: these are the test digits.

    ``train_size`` and ``test_size`` cut the two parts to their first so many; 0: all.
    """
    images, labels = digits.train_images, digits.train_labels
    unseen = (digits.test_images, digits.test_labels)
    if validation:
        unseen = images[-validation:], labels[-validation:]
        images, labels = images[:-validation], labels[:-validation]
    n, m = train_size or len(images), test_size or len(unseen[0])
    return Split(images[:n], labels[:n], unseen[0][:m], unseen[1][:m])
