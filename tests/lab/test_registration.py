"""Warping, smoothness, overlap and folding, against float64 twins."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperlight.lab import registration
from tests.reference import registration as twins

sizes = st.tuples(st.integers(1, 2), st.integers(2, 6), st.integers(2, 6))


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)


@settings(max_examples=40)
@given(sizes, st.sampled_from([0.0, 0.3, 2.0, 9.0]), st.integers(0, 99))
def test_warping_equals_its_twin(size: tuple[int, int, int], scale: float, seed: int) -> None:
    batch, height, width = size
    images = random(batch, 2, height, width, seed=seed)
    field = random(batch, 2, height, width, seed=seed + 1, scale=scale)
    found = registration.warp(images, field)
    for b in range(batch):
        for c in range(2):
            torch.testing.assert_close(found[b, c], twins.warp(images[b, c], field[b]))


def test_the_gradient_of_warping() -> None:
    images = random(1, 1, 4, 5).requires_grad_()
    field = random(1, 2, 4, 5, seed=1, scale=0.2).requires_grad_()
    assert torch.autograd.gradcheck(registration.warp, (images, field))


@pytest.mark.parametrize("places", [1, 500])
def test_a_displacement_of_nan_does_no_harm(places: int) -> None:
    # The gradient of grid_sample alone crashes the process here (torch 2.13).
    images = torch.rand(4, 1, 96, 80)
    displacement = torch.randn(4, 2, 96, 80)
    whole = registration.warp(images, displacement)
    lost = torch.zeros(4, 96, 80, dtype=torch.bool)
    lost.view(-1)[torch.randperm(lost.numel())[:places]] = True
    displacement[:, 1][lost] = math.nan
    displacement.requires_grad_()
    warped = registration.warp(images, displacement)
    assert torch.equal(warped.isnan(), lost.unsqueeze(1))
    assert torch.equal(warped[~lost.unsqueeze(1)], whole[~lost.unsqueeze(1)])
    (gradient,) = torch.autograd.grad(warped[~lost.unsqueeze(1)].sum(), displacement)
    at = lost.unsqueeze(1).expand(-1, 2, -1, -1)
    assert (gradient[at] == 0.0).all()
    assert gradient[~at].isfinite().all()
    assert (gradient[~at] != 0.0).any()


def test_a_shift_maps_an_image_to_its_shifted_copy() -> None:
    moving = random(1, 1, 8, 8)
    fixed = moving.roll((1, -2), dims=(-2, -1))
    field = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    field[:, 0], field[:, 1] = -1.0, 2.0
    inner = (..., slice(1, 8), slice(0, 6))
    torch.testing.assert_close(registration.warp(moving, field)[inner], fixed[inner])
    labels = moving[:, 0].gt(0.0).long()
    found = registration.warp_labels(labels, field)
    assert torch.equal(found[inner], fixed[:, 0].gt(0.0).long()[inner])


@settings(max_examples=30)
@given(sizes, st.integers(0, 99))
def test_labels_are_those_of_the_nearest_pixel(size: tuple[int, int, int], seed: int) -> None:
    batch, height, width = size
    labels = random(batch, height, width, seed=seed).mul(3).long().abs()
    field = random(batch, 2, height, width, seed=seed + 1, scale=2.0)
    found = registration.warp_labels(labels, field)
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                row = min(max(round(i + float(field[b, 0, i, j])), 0), height - 1)
                column = min(max(round(j + float(field[b, 1, i, j])), 0), width - 1)
                assert found[b, i, j] == labels[b, row, column]


@settings(max_examples=30)
@given(sizes, st.integers(0, 99))
def test_variation_and_folding_equal_their_twins(size: tuple[int, int, int], seed: int) -> None:
    batch, height, width = size
    field = random(batch, 2, height, width, seed=seed)
    assert float(registration.total_variation(field)) == pytest.approx(twins.total_variation(field))
    found = registration.folding(field)
    assert found.tolist() == pytest.approx([twins.folding(one) for one in field])


def test_examples_with_and_without_folding() -> None:
    height, width = torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij")
    place = torch.stack([height, width]).unsqueeze(0)
    assert registration.folding(torch.zeros(1, 2, 6, 5)).tolist() == [0.0]
    assert registration.jacobian(0.5 * place).unique().tolist() == [2.25]
    turned = torch.stack([width, -height]).unsqueeze(0) - place  # a quarter turn folds nothing
    assert registration.folding(turned).tolist() == [0.0]
    mirrored = place * torch.tensor([-2.0, 0.0]).view(1, 2, 1, 1)
    assert registration.folding(mirrored).tolist() == [1.0]


@settings(max_examples=30)
@given(sizes, st.integers(2, 5), st.integers(0, 99))
def test_dice_equals_its_twin(size: tuple[int, int, int], labels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(labels, size, generator=generator)
    truth = torch.randint(labels, size, generator=generator)
    overlap = registration.dice(found, truth, labels)
    for b in range(size[0]):
        twin = twins.dice(found[b], truth[b], labels)
        assert (math.isnan(twin) and overlap[b].isnan()) or float(overlap[b]) == pytest.approx(twin)


def test_soft_dice_of_certain_labels_is_dice() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(4, (3, 9, 9), generator=generator) for _ in range(2))
    hot = [torch.nn.functional.one_hot(t, 4).movedim(-1, 1).double() for t in (a, b)]
    expected = registration.dice(a, b, 4)
    torch.testing.assert_close(registration.soft_dice(*hot, eps=0.0), expected)
    assert registration.soft_dice(hot[0], hot[0]).tolist() == pytest.approx([1.0] * 3)
    near = hot[0].clone().requires_grad_()
    registration.soft_dice(near, hot[1]).sum().backward()
    assert near.grad is not None
    assert float(near.grad[:, 0].abs().sum()) == 0.0
    assert float(near.grad[:, 1:].abs().sum()) > 0.0
