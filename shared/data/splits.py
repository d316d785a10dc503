"""The division of images into those for training and unseen ones for evaluation."""

from typing import NamedTuple

from torch import Tensor

from shared.data.mnist import Digits


class Split(NamedTuple):
    """Training digits, and unseen ones for evaluation; grey levels uint8 [n, 784], labels [n]."""

    images: Tensor
    labels: Tensor
    unseen_images: Tensor
    unseen_labels: Tensor


def split(digits: Digits, validation: int, train_size: int, test_size: int) -> Split:
    """Hold out the last ``validation`` training digits as unseen; 0: these are the test digits.

    Each part is then cut to its first ``train_size`` or ``test_size`` digits; 0: all.
    """
    images, labels = digits.train_images, digits.train_labels
    unseen = (digits.test_images, digits.test_labels)
    if validation:
        unseen = images[-validation:], labels[-validation:]
        images, labels = images[:-validation], labels[:-validation]
    n, m = train_size or len(images), test_size or len(unseen[0])
    return Split(images[:n], labels[:n], unseen[0][:m], unseen[1][:m])
