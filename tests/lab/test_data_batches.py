"""Batches and augmentation: compared with a slow obvious twin, resumed to the exact next one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlight.lab.data import (
    Augmentation,
    Batches,
    Images,
    PairBatches,
    Scans,
    digit_scans,
    pairs,
    split_names,
)
from hyperlight.lab.errors import DataError
from tests.lab.making import equal_tensors
from tests.reference.augment import augment


def _images(count: int, side: int = 12, channels: int = 3) -> Images:
    draw = torch.Generator().manual_seed(1)
    images = torch.rand(count, channels, side, side, generator=draw)
    aspect = 0.5 + 1.5 * torch.rand(count, generator=draw)
    return Images(images, torch.arange(count), aspect)


def _scans(groups: list[int]) -> Scans:
    count = len(groups)
    values = torch.arange(count, dtype=torch.uint8)
    return Scans(
        values.view(-1, 1, 1, 1).expand(count, 1, 2, 2),
        values.view(-1, 1, 1).expand(count, 2, 2),
        torch.tensor(groups),
    )


# --- batches ------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 3))
def test_every_epoch_has_everything_once(count: int, batch_size: int, seed: int) -> None:
    batch_size = min(batch_size, count)
    batches = Batches(_images(count, side=2), batch_size, seed)
    full = count // batch_size
    for _ in range(2):
        seen = [i for _ in range(full) for i in next(batches).labels.tolist()]
        assert len(set(seen)) == len(seen) == full * batch_size


def test_epochs_have_orders_of_their_own_and_seeds_too() -> None:
    batches = Batches(_images(50, side=2), 50, seed=0)
    first, second = (next(batches).labels.tolist() for _ in range(2))
    other = next(Batches(_images(50, side=2), 50, seed=1)).labels.tolist()
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first != other
    assert first == next(Batches(_images(50, side=2), 50, seed=0)).labels.tolist()


@settings(max_examples=20)
@given(st.integers(0, 9), st.booleans())
def test_a_state_gives_the_exact_next_batches(before: int, augmented: bool) -> None:
    def fresh(seed: int) -> Batches[Images]:
        return Batches(_images(10), 3, seed, Augmentation(6) if augmented else None)

    batches = fresh(0)
    for _ in range(before):
        next(batches)
    state = {name: value.clone() for name, value in batches.state_dict().items()}
    expected = [next(batches) for _ in range(7)]
    resumed = fresh(5)
    resumed.load_state_dict(state)
    for batch in expected:
        found = next(resumed)
        assert torch.equal(found.images, batch.images)
        assert torch.equal(found.labels, batch.labels)


def test_a_batch_is_a_copy_of_floats() -> None:
    data = Images(torch.full((4, 3, 2, 2), 255, dtype=torch.uint8), torch.arange(4))
    batch = next(Batches(data, 2, seed=0))
    assert batch.images.dtype == torch.float32
    assert bool((batch.images == 1.0).all())
    scans = _scans([0, 0, 0])
    found = next(Batches(scans, 3, seed=0))
    assert (found.images.dtype, found.labels.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(found.images[:, 0] * 255.0, found.labels.float())
    source = _images(4)
    kept = source.images.clone()
    next(Batches(source, 4, seed=0, augment=Augmentation(6))).images.zero_()
    next(Batches(source, 4, seed=0)).images.zero_()
    assert torch.equal(source.images, kept)


@pytest.mark.parametrize("size", [0, 5])
def test_a_batch_that_cannot_be_drawn(size: int) -> None:
    with pytest.raises(DataError, match=f"batch size was {size}; expected 1 to 4"):
        Batches(_images(4), size, seed=0)
    with pytest.raises(DataError, match=f"batch size was {size}; expected 1 to 4"):
        PairBatches(_scans([0] * 4), size, seed=0)


def test_a_state_of_other_data_is_refused() -> None:
    batches = Batches(_images(20), 2, seed=0)
    next(batches)
    with pytest.raises(DataError, match=r"data with 20 entries or more; this has 10"):
        Batches(_images(10), 2, seed=0).load_state_dict(batches.state_dict())


counts = st.integers(1, 4)


@settings(max_examples=30)
@given(counts, st.integers(1, 3), st.integers(0, 3), st.booleans(), st.integers(0, 3))
def test_the_shards_of_all_processes_are_the_batch_of_one(
    processes: int, each: int, seed: int, augmented: bool, drawn_before: int
) -> None:
    """Entry by entry, also where an epoch ends and after a state was taken over."""
    data, size = _images(14), processes * each
    augment = Augmentation(6) if augmented else None
    whole = Batches(data, size, seed, augment)
    parts = [Batches(data, size, seed, augment, (i, processes)) for i in range(processes)]
    for _ in range(drawn_before):
        next(whole)
        for part in parts:
            next(part)
    states = [part.state_dict() for part in (whole, *parts)]
    assert all(equal_tensors(state, states[0]) for state in states)
    resumed = Batches(data, size, seed + 1, augment, (processes - 1, processes))
    resumed.load_state_dict(states[0])
    for _ in range(5):
        batch = next(whole)
        for i, part in enumerate(parts):
            shard = next(part)
            assert len(shard) == each
            assert torch.equal(shard.labels, batch.labels[i::processes])
            assert torch.equal(shard.images, batch.images[i::processes])
        assert torch.equal(next(resumed).images, batch.images[processes - 1 :: processes])


@pytest.mark.parametrize(
    "make",
    [
        lambda size, shard: Batches(_images(4), size, 0, None, shard),
        lambda size, shard: PairBatches(_scans([0] * 4), size, 0, shard),
    ],
    ids=["batches", "pairs"],
)
@pytest.mark.parametrize(("size", "processes"), [(3, 2), (1, 2), (4, 3)])
def test_a_batch_that_cannot_be_divided_is_refused(
    make: Callable[[int, tuple[int, int]], object], size: int, processes: int
) -> None:
    with pytest.raises(DataError) as raised:
        make(size, (0, processes))
    assert str(raised.value) == (
        f"The batch size was {size}, with {processes} processes; expected a multiple of the number "
        "of processes."
    )


# --- pairs --------------------------------------------------------------------------


def test_pairs_are_of_one_group_and_all_of_them_are_drawn() -> None:
    groups = [0, 3, 0, 3, 0, 5, 5]
    batches = PairBatches(_scans(groups), 7, seed=0)
    seen = set()
    for _ in range(100):
        moving, fixed = next(batches)
        assert torch.equal(moving.groups, fixed.groups)
        seen |= set(
            zip(moving.labels[:, 0, 0].tolist(), fixed.labels[:, 0, 0].tolist(), strict=True)
        )
    expected = {(i, j) for i in range(7) for j in range(7) if i != j and groups[i] == groups[j]}
    assert seen == expected


def test_pairs_resume() -> None:
    batches = PairBatches(_scans([0] * 9), 4, seed=0)
    next(batches)
    state = batches.state_dict()
    expected = [next(batches) for _ in range(3)]
    resumed = PairBatches(_scans([0] * 9), 4, seed=7)
    resumed.load_state_dict(state)
    for moving, fixed in expected:
        again = next(resumed)
        assert torch.equal(again[0].labels, moving.labels)
        assert torch.equal(again[1].labels, fixed.labels)


@settings(max_examples=30)
@given(counts, st.integers(1, 3), st.integers(0, 3), st.integers(0, 3))
def test_the_shares_of_pairs_are_the_pairs_of_one_process(
    processes: int, each: int, seed: int, drawn_before: int
) -> None:
    data, size = _scans([0, 1, 0, 1, 1, 2, 2, 2, 2, 0, 0, 1]), processes * each
    whole = PairBatches(data, size, seed)
    parts = [PairBatches(data, size, seed, (i, processes)) for i in range(processes)]
    for batches in (whole, *parts):
        for _ in range(drawn_before):
            next(batches)
    assert all(equal_tensors(part.state_dict(), whole.state_dict()) for part in parts)
    for _ in range(4):
        pair = next(whole)
        for i, part in enumerate(parts):
            for found, expected in zip(next(part), pair, strict=True):
                assert len(found) == each
                assert torch.equal(found.labels, expected.labels[i::processes])
                assert torch.equal(found.images, expected.images[i::processes])
                assert torch.equal(found.groups, expected.groups[i::processes])


def test_a_scan_alone_in_its_group_is_refused() -> None:
    with pytest.raises(DataError, match="A group has a single scan"):
        PairBatches(_scans([0, 0, 1]), 1, seed=0)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), max_size=12))
def test_evaluation_pairs_have_each_scan_twice(groups: list[int]) -> None:
    moving, fixed = pairs(torch.tensor(groups, dtype=torch.int64))
    paired = [i for i, group in enumerate(groups) if groups.count(group) > 1]
    assert sorted(moving.tolist()) == sorted(fixed.tolist()) == paired
    for i, j in zip(moving.tolist(), fixed.tolist(), strict=True):
        assert i != j
        assert groups[i] == groups[j]


# --- augmentation -------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_is_that_of_its_twin(channels: int) -> None:
    data = _images(6, channels=channels)
    data = Images(data.images.double(), data.labels, data.aspect.double())  # type: ignore[union-attr]
    for seed in range(4):
        found = Augmentation(7)(data, torch.Generator().manual_seed(seed))
        draws = torch.rand(7, 6, generator=torch.Generator().manual_seed(seed)).double().numpy()
        assert data.aspect is not None
        for i in range(6):
            expected = augment(data.images[i].numpy(), float(data.aspect[i]), draws[:, i], 7)
            np.testing.assert_allclose(found.images[i].numpy(), expected, atol=1e-6)
        assert torch.equal(found.labels, data.labels)
        assert found.aspect is None
        assert float(found.images.min()) >= 0.0
        assert float(found.images.max()) <= 1.0


def test_a_whole_square_without_jitter_is_the_image_or_its_mirror() -> None:
    data = Images(_images(40, side=8).images, torch.arange(40))
    plain = Augmentation(8, area=(1.0, 1.0), brightness=0.0, contrast=0.0, saturation=0.0)
    found = plain(data, torch.Generator().manual_seed(0)).images
    same = (found - data.images).abs().amax(dim=(1, 2, 3)) < 1e-5
    mirrored = (found - data.images.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert bool((same ^ mirrored).all())
    assert 8 < int(mirrored.sum()) < 32


# --- scans --------------------------------------------------------------------------


def test_digit_scans_are_the_digits_with_their_ink() -> None:
    split = digit_scans()
    for part, count in ((split.train, 1149), (split.valid, 288), (split.test, 360)):
        assert part.images.shape == (count, 1, 32, 32)
        assert part.labels.shape == (count, 32, 32)
        assert torch.equal(part.labels > 0, part.images[:, 0] > 0.5)
        assert torch.equal(part.labels.amax(dim=(1, 2)).long(), 1 + part.groups)
    assert len(split.label_names) == 11
    assert split.label_names[4] == "digit 3"
    assert "label maps made of ink and digit" in split.note


def test_resizing_keeps_label_values() -> None:
    scans = digit_scans().test[[0, 1, 2]]
    smaller = scans.resize((20, 12))
    assert smaller.images.shape == (3, 1, 20, 12)
    for before, after in zip(scans.labels, smaller.labels, strict=True):
        assert set(after.unique().tolist()) <= set(before.unique().tolist())
    assert scans.resize((32, 32)) is scans
    whole = Scans((scans.images * 255).to(torch.uint8), scans.labels, scans.groups)
    assert whole.resize((16, 16)).images.dtype == torch.uint8


@given(st.integers(5, 200), st.integers(0, 100))
@settings(max_examples=30)
def test_names_are_split_into_parts_that_do_not_depend_on_order(count: int, seed: int) -> None:
    names = [f"subject {i}" for i in range(count)]
    parts = split_names(names)
    assert sorted(i for part in parts for i in part) == list(range(count))
    assert abs(len(parts[0]) - 0.64 * count) <= 1
    assert abs(len(parts[2]) - 0.20 * count) <= 1
    mixed: Any = np.random.default_rng(seed).permutation(names).tolist()
    again = split_names(mixed)
    for part, other in zip(parts, again, strict=True):
        assert {names[i] for i in part} == {mixed[i] for i in other}


def test_the_split_never_changes() -> None:
    assert split_names([f"subject {i}" for i in range(6)]) == PINNED


PINNED = ([0, 2, 3, 5], [4], [1])
