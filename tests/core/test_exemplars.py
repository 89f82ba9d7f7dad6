import itertools

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.exemplars import STRATEGIES, ExemplarConfig, Exemplars, herd


def items(store):
    return [item for item, _ in store]


def labels(store):
    return [c for _, c in store]


def memory(strategy="herding", size=4, per="class", seed=0):
    return Exemplars(ExemplarConfig(size, per, strategy), seed)


def embed(items):
    """Item i lies at (i, 1); the strings 'a3', 'b7' count as 3 and 7."""
    return torch.tensor([[float(str(i)[1:] or 0), 1.0] for i in items])


def offer(store, letter, count=20, first=0):
    store.add([f"{letter}{i}" for i in range(first, first + count)], [letter] * count, embed)


def test_herding_equals_a_direct_computation():
    z = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    unit = (z / z.norm(dim=1, keepdim=True)).double()
    chosen = []
    for k in range(12):
        costs = {
            i: (unit.mean(0) - unit[[*chosen, i]].sum(0) / (k + 1)).norm().item() for i in range(30) if i not in chosen
        }
        chosen.append(min(costs, key=costs.get))
    assert herd(z, 12) == chosen


def test_herding_stays_near_the_mean():
    """With the mean of the chosen in place of their sum, the picks drift to the extremes: 10, 9, 19, 18, 17, 16."""
    z = torch.arange(20.0)[:, None]
    chosen = herd(z, 6, normalize=False)
    assert len(set(chosen)) == 6 and abs(np.mean(chosen) - 9.5) < 0.3 and max(chosen) < 19
    for k in range(2, 7):
        assert abs(np.mean(chosen[:k]) - 9.5) <= 0.5


def test_herding_takes_everything_once_when_there_is_room():
    assert sorted(herd(torch.randn(5, 3), 9)) == list(range(5))
    assert sorted(herd(torch.zeros(5, 3), 9)) == list(range(5))


def test_a_smaller_memory_is_a_prefix():
    z = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    assert herd(z, 10)[:4] == herd(z, 4)


@pytest.mark.parametrize(("strategy", "per"), list(itertools.product(STRATEGIES, ["class", "total"])))
def test_no_item_is_kept_twice_and_the_size_is_used(strategy, per):
    """Old exemplars come back with every phase's data; a published buffer of 12 then held 8 different images."""
    store = memory(strategy, 12, per)
    for letter in "abc":
        back = items(store)
        offer(store, letter)
        store.add(back, [item[0] for item in back], embed)
        store.add([f"{letter}1", f"{letter}1"], [letter] * 2, embed)
    assert len(set(items(store))) == len(items(store)) == len(store) == (36 if per == "class" else 12)
    assert all(item[0] == c for item, c in store)


@pytest.mark.parametrize("strategy", ["herding", "equal_random"])
def test_total_is_shared_out_and_no_share_ever_grows(strategy):
    store, before = memory(strategy, 10, "total"), {}
    for letter in "abcd":
        offer(store, letter)
        sizes = {c: len(items) for c, items in store.store.items()}
        assert sum(sizes.values()) == 10 and max(sizes.values()) - min(sizes.values()) <= 1
        assert all(store.store[c] == items[: sizes[c]] for c, items in before.items())
        before = {c: list(items) for c, items in store.store.items()}


def test_every_strategy_does_something_of_its_own():
    found = set()
    for strategy in STRATEGIES:
        store = memory(strategy, 6, "total", seed=5)
        offer(store, "a")
        offer(store, "b", 60)
        assert len(store) == 6
        found.add(tuple(items(store)))
    assert len(found) == 4


@pytest.mark.parametrize("strategy", ["random", "equal_random", "reservoir"])
def test_draws_are_uniform(strategy):
    counts = np.zeros(10)
    for seed in range(400):
        store = memory(strategy, 5, "total", seed)
        offer(store, "a", 10)
        for item in items(store):
            counts[int(item[1:])] += 1
    assert counts.sum() == 2000 and (abs(counts - 200) < 50).all()


def test_reservoir_is_uniform_over_everything_ever_offered():
    counts = {"a": 0, "b": 0}
    for seed in range(200):
        store = memory("reservoir", 6, "total", seed)
        for start in range(0, 30, 10):
            offer(store, "a", 10, start)
        offer(store, "b", 10)
        for c in labels(store):
            counts[c] += 1
    assert sum(counts.values()) == 1200 and abs(counts["a"] - 900) < 60


def test_seed_decides_and_a_resumed_memory_goes_on_alike():
    first, second, other = memory("random", seed=1), memory("random", seed=1), memory("random", seed=2)
    for store in (first, second, other):
        offer(store, "a")
    assert items(first) == items(second) != items(other)
    resumed = memory("random", seed=1)
    resumed.load_state_dict(first.state_dict())
    for store in (first, resumed):
        offer(store, "b")
    assert items(first) == items(resumed)


def test_forgotten_classes_leave_no_item():
    store = memory()
    offer(store, "a")
    offer(store, "b")
    store.forget(["a", "unknown"])
    assert set(labels(store)) == {"b"} and len(store) == 4


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.uint8, "numpy"])
def test_tensors_are_told_apart_by_content_and_copied(kind):
    images = [torch.full((3, 2, 2), float(i)) for i in (1, 2, 1)]
    images = [i.numpy() for i in images] if kind == "numpy" else [i.to(kind) for i in images]
    store = memory("random", 5)
    store.add(images, torch.tensor([0, 0, 0]))
    assert len(store) == 2 and labels(store) == [0, 0]
    if kind == torch.float32:
        images[0].zero_()
        assert {float(i.max()) for i in items(store)} == {1.0, 2.0}


def test_the_same_picture_may_belong_to_two_classes():
    store = memory("random")
    store.add([7, 7], [0, 1])
    assert sorted(store) == [(7, 0), (7, 1)]


def test_what_cannot_work_is_refused():
    with pytest.raises(UserError, match="embed"):
        memory().add([1], [0])
    with pytest.raises(UserError, match="as many labels"):
        memory("random").add([1, 2], [0])
    with pytest.raises(UserError, match="fewer than the 3 classes"):
        memory("equal_random", 2, "total").add([1, 2, 3], [0, 1, 2])
    with pytest.raises(UserError, match="balance_random"):
        memory("balance_random")
    with pytest.raises(UserError, match="at least 1"):
        memory(size=0)
    with pytest.raises(UserError, match="class or total"):
        memory(per="task")
