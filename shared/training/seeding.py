"""Randomness as a function of (seed, purpose, step): nothing to save, nothing to restore.

Every draw of a training step comes from a generator made for that step, so a resumed run and a run
on another number of processes draw the same numbers.
"""

import numpy as np
import torch
from torch import Tensor

# Purposes of streams of random numbers. Checkpoints and results depend on these values.
PERMUTATION, NOISE, EVALUATION, ENVIRONMENT = range(4)
PREFERENCE_COMPLETIONS, PREFERENCE_PAIRS = 61, 62
ON_POLICY = 99  # whether a step trains on texts of the student or of the data


def generator(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator on ``device`` for this key, e.g. ``(seed, NOISE, step)``.

    Zeros at the end of a key do not count: (1, 2) and (1, 2, 0) are one stream.
    The key is mixed by numpy's SeedSequence: torch's CPU engine takes 32 bits of a seed only, and
    neighbouring seeds give correlated first draws.
    """
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    return torch.Generator(device).manual_seed(seed)


def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """The data order of an epoch: [n] int64 on the CPU, the same on every process."""
    return torch.randperm(n, generator=generator("cpu", seed, PERMUTATION, epoch))
