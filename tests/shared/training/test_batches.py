"""An endless order of rows, and its parts over processes and micro-batches."""

import pytest
import torch

from shared.training import batches
from shared.training.batches import micro_batches, stream


def test_stream_goes_through_everything_before_it_repeats() -> None:
    n = 7
    whole = stream(n, 3, 0, 3 * n)
    for start in range(0, 3 * n, n):
        assert sorted(whole[start : start + n].tolist()) == list(range(n))
    pieces = torch.cat([stream(n, 3, start, 3) for start in range(0, 3 * n, 3)])
    assert torch.equal(whole, pieces)
    assert not torch.equal(whole, stream(n, 4, 0, 3 * n))


@pytest.mark.parametrize(("count", "size", "world"), [(5, 2, 1), (5, 2, 2), (1, 4, 2), (8, 3, 3)])
def test_micro_batches_cover_the_batch_once(
    count: int, size: int, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, lengths = [], set()
    for rank in range(world):
        monkeypatch.setattr(batches, "world_size", lambda: world)
        monkeypatch.setattr(batches, "own_rows", lambda x, r=rank: x.tensor_split(world)[r])
        parts = micro_batches(count, size)
        lengths.add(len(parts))
        assert all(0 < len(rows) <= size for rows, _ in parts)
        seen += [row for rows, idle in parts if not idle for row in rows.tolist()]
    assert sorted(seen) == list(range(count))
    assert len(lengths) == 1
