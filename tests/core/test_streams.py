"""Streams: batch k is a function of (seed, k), whoever asks and wherever it starts."""

from itertools import islice

import pytest
import torch

from common.streams import Chosen, Ordered, Stream, derive, load_batches

SIZE = 10


def take(stream, count, size=SIZE):
    return list(islice(stream.batches(size), count))


def test_every_item_comes_once_per_round_in_a_new_order():
    draws = [d.index for batch in take(Stream(0, 5), 4) for d in batch]
    first, second = draws[:SIZE], draws[SIZE:]
    assert sorted(first) == sorted(second) == list(range(SIZE)) and first != second


def test_augmentation_seeds_differ_from_draw_to_draw():
    seeds = [d.seed for batch in take(Stream(0, 5), 8) for d in batch]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("start", [1, 3, 7])
def test_a_stream_that_starts_late_is_the_tail_of_the_whole(start):
    assert take(Stream(3, 4, start), 5) == take(Stream(3, 4), start + 5)[start:]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("start", [0, 2])
def test_ranks_together_draw_what_one_process_draws(world, start):
    whole = take(Stream(1, 4 * world, start), 6)
    ranks = [take(Stream(1, 4, start, rank, world), 6) for rank in range(world)]
    assert [[d for part in parts for d in part] for parts in zip(*ranks, strict=True)] == whole


def test_small_batches_in_a_row_are_one_large_batch():
    small = [d for batch in take(Stream(1, 3), 4) for d in batch]
    assert small == take(Stream(1, 12), 1)[0]


def test_a_batch_may_be_larger_than_the_data():
    batch = take(Stream(0, 7), 1, size=3)[0]
    assert len(batch) == 7 and {d.index for d in batch} == {0, 1, 2}


def test_steps_cover_the_data_once():
    assert [Stream(0, 4).steps(n) for n in (1, 4, 5, 8)] == [1, 1, 2, 2]
    assert Stream(0, 4, world=2).steps(9) == 2


def test_seeds_differ_by_role_and_are_the_same_everywhere():
    assert derive(0, "a") != derive(0, "b") != derive(1, "a")
    assert derive(0, "stream", 1, "keep") == 5631495516648550304  # another value would break saved runs
    assert 0 <= derive(5, "word") < 2**63


def test_an_ordered_pass_covers_every_item_once_over_the_ranks():
    seen = [d for rank in range(3) for batch in Ordered(0, 2, 0, rank, 3).batches(SIZE) for d in batch]
    assert sorted(d.index for d in seen) == list(range(SIZE)) and {d.seed for d in seen} == {None}


def test_a_memory_is_drawn_from_alone():
    draws = [d.index for batch in take(Chosen(0, 3, items=(2, 5, 7)), 4) for d in batch]
    assert set(draws) == {2, 5, 7} and sorted(draws[:3]) == [2, 5, 7]


def named(draws):
    """A batch as domains make them: a tuple of a tensor, numbers and names."""
    return torch.tensor([d.index for d in draws]), tuple(d.seed for d in draws), [f"item {d.index}" for d in draws]


@pytest.mark.parametrize("stream", [Stream(3, 4, start=2), Ordered(0, 4)], ids=["endless", "ordered"])
def test_workers_change_no_batch_and_draw_no_random_number(stream):
    indices = [7, 11, 13, 2, 5, 3]
    before = torch.get_rng_state()
    alone, together = (list(islice(load_batches(stream, indices, named, workers), 3)) for workers in (0, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(alone) == len(together) and set(alone[0][0].tolist()) <= set(indices)
    for mine, other in zip(alone, together, strict=True):
        assert torch.equal(mine[0], other[0]) and mine[1:] == other[1:]
