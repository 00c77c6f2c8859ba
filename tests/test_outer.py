"""The gradient of a dense head as its factors: to everything that reads it, the matrix."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.optim import passes
from hyperlight.optim.outer import OuterProduct, dense_product, keep_factored
from tests.models import one_graph
from tests.reference.optim import outer_products

P, K = 7, 5


@pytest.fixture(autouse=True)
def small_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors even for small heads."""
    monkeypatch.setattr(passes, "_LARGE_GRADIENT", 0)


def factors(rows: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, P, dtype=torch.float64, generator=generator)
    return left, torch.randn(rows, K, dtype=torch.float64, generator=generator)


def pair(rows: int = 2, seed: int = 0) -> tuple[OuterProduct, Tensor]:
    left, right = factors(rows, seed)
    return OuterProduct(left, right), outer_products(left, right)


def same(found: Any, expected: Any) -> None:
    if isinstance(found, OuterProduct):
        found = found.dense()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


class Owner:
    """Stands for an optimizer."""


SCALAR = torch.tensor(0.25, dtype=torch.float64)
# What stays factored, and whether the result is itself a gradient.
FACTORED: dict[str, Callable[[Tensor], Any]] = {
    "detach": lambda g: g.detach(),
    "data": lambda g: g.data,
    "clone": lambda g: g.clone(),
    "deepcopy": copy.deepcopy,
    "mul": lambda g: g * 3.0,
    "rmul": lambda g: 3.0 * g,
    "mul by a tensor": lambda g: g * SCALAR,
    "div": lambda g: g / 3.0,
    "div by a tensor": lambda g: g / SCALAR,
    "neg": lambda g: -g,
    "add": lambda g: g + (pair(1, 5)[0] if isinstance(g, OuterProduct) else pair(1, 5)[1]),
    "sub by alpha": lambda g: torch.add(
        g, pair(1, 5)[0] if isinstance(g, OuterProduct) else pair(1, 5)[1], alpha=-2.0
    ),
    "mul_": lambda g: g.mul_(3.0),
    "mul_ by a tensor": lambda g: g.mul_(SCALAR),
    "div_": lambda g: g.div_(SCALAR),
    "detach and mul_": lambda g: (g.detach().mul_(2.0), g)[1],
    "add_": lambda g: g.add_(pair(1, 5)[0] if isinstance(g, OuterProduct) else pair(1, 5)[1]),
    "zero_": lambda g: g.zero_(),
    "foreach mul_": lambda g: (torch._foreach_mul_([g], 0.5), g)[1],
    "foreach mul_ by a tensor": lambda g: (torch._foreach_mul_([g], SCALAR), g)[1],
    "foreach zero_": lambda g: (torch._foreach_zero_([g]), g)[1],
}
NORMS: dict[str, Callable[[Tensor], Any]] = {
    "norm": lambda g: g.norm(),
    "vector norm": lambda g: torch.linalg.vector_norm(g),
    "norm 1": lambda g: torch.linalg.vector_norm(g, 1),
    "norm inf": lambda g: torch.linalg.vector_norm(g, float("inf")),
    "norm along": lambda g: torch.linalg.vector_norm(g, 2, dim=1),
    "norm kept": lambda g: torch.linalg.vector_norm(g, 2, keepdim=True),
    "norm in a dtype": lambda g: torch.linalg.vector_norm(
        g.float(), 2, dtype=torch.float64
    ).float(),
    "foreach norm": lambda g: torch._foreach_norm([g])[0],
    "foreach norm 1": lambda g: torch._foreach_norm([g, g], 1)[1],
}
READ: dict[str, Callable[[Tensor], Any]] = {
    "sum": lambda g: g.sum(),
    "isfinite": lambda g: torch.isfinite(g).all(),
    "numpy": lambda g: torch.from_numpy(g.numpy().copy()),
    "tolist": lambda g: torch.tensor(g.tolist(), dtype=torch.float64),
    "to": lambda g: g.to(torch.float32),
    "cpu": lambda g: g.cpu() + 0.0,
    "cat": lambda g: torch.cat([g, g]),
    "mul by a matrix": lambda g: g * torch.ones(P, K, dtype=torch.float64),
    "add to a matrix": lambda g: torch.ones(P, K, dtype=torch.float64).add_(g),
    "add a matrix": lambda g: g + torch.ones(P, K, dtype=torch.float64),
    "copied into": lambda g: torch.empty(P, K, dtype=torch.float64).copy_(g),
    "float64 scalar of a matrix": lambda g: g.max(),
    "foreach add": lambda g: torch._foreach_add([g], 1.0)[0],
    "mul by an int tensor": lambda g: g.long() * 2,
    "pickle": lambda g: pickle.loads(pickle.dumps(g)),
}
WRITTEN: dict[str, Callable[[Tensor], Any]] = {
    "clamp_": lambda g: (g.clamp_(-0.1, 0.1), g)[1],
    "foreach clamp": lambda g: (torch._foreach_clamp_min_([g], 0.0), g)[1],
    "index": lambda g: g[1, 2],
    "row": lambda g: (g[1].zero_(), g)[1],
    "view": lambda g: (g.view(-1)[3:9].fill_(2.0), g)[1],
    "transposed": lambda g: (g.mT.mul_(2.0), g)[1],
    "add_ a matrix": lambda g: g.add_(torch.ones(P, K, dtype=torch.float64)),
    "mul_ by a matrix": lambda g: g.mul_(torch.full((P, K), 2.0, dtype=torch.float64)),
    "copy_": lambda g: g.copy_(torch.ones(P, K, dtype=torch.float64)),
    "alias": lambda g: (g.detach().clamp_(0.0, 0.1), g)[1],
    "twice": lambda g: (g.clamp_(-0.1, 0.1), g.mul_(2.0), g.detach().add_(1.0), g)[3],
    "fill_": lambda g: g.fill_(1.0),
    "out": lambda g: (torch.sin(torch.ones(P, K, dtype=torch.float64), out=g.detach()), g)[1],
}


@pytest.mark.parametrize("rows", [0, 1, 2, 4])
@pytest.mark.parametrize("name", [*FACTORED, *NORMS, *READ, *WRITTEN])
def test_whatever_is_done_with_it_gives_what_the_matrix_gives(name: str, rows: int) -> None:
    work = (FACTORED | NORMS | READ | WRITTEN)[name]
    lazy, dense = pair(rows)
    found = work(lazy)
    same(found, work(dense))
    same(lazy, dense)  # changed in the same way, if at all
    assert lazy.factored == (name not in WRITTEN)
    if name in FACTORED:
        assert isinstance(found, OuterProduct)
        assert found.factored
    if name in READ:
        assert not isinstance(found, OuterProduct)


def test_aliases_change_together_and_clones_do_not() -> None:
    lazy, dense = pair()
    alias, clone = lazy.detach(), lazy.clone()
    alias.mul_(2.0)
    same(lazy, 2 * dense)
    alias[0].fill_(1.0)
    assert not lazy.factored
    assert (lazy.dense()[0] == 1.0).all()
    same(clone, dense)


def test_the_factors_themselves_are_never_written() -> None:
    left, right = factors()
    before = left.clone(), right.clone()
    lazy = OuterProduct(left, right)
    lazy.mul_(2.0).div_(3.0).add_(pair()[0]).zero_().add_(1.0)
    found_inf, scale = torch.zeros(()), torch.full((), 0.5)
    torch._amp_foreach_non_finite_check_and_unscale_([OuterProduct(left, right)], found_inf, scale)
    assert torch.equal(left, before[0])
    assert torch.equal(right, before[1])


def test_more_rows_than_columns_become_the_matrix() -> None:
    lazy, dense = pair(3)
    other, other_dense = pair(3, 1)
    total = lazy + other
    assert not isinstance(total, OuterProduct)
    same(total, dense + other_dense)
    lazy.add_(other)
    assert not lazy.factored
    same(lazy, dense + other_dense)


@given(
    rows=st.integers(1, 5),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-8, 1.0, 1e8]),
    cancel=st.booleans(),
)
def test_norms_are_those_of_the_matrix(rows: int, seed: int, scale: float, cancel: bool) -> None:
    left, right = factors(rows, seed)
    left = left * scale
    if cancel:  # pairs of rows whose products sum to zero
        left, right = torch.cat([left, -left]), torch.cat([right, right])
    found, expected = OuterProduct(left, right).norm(), outer_products(left, right).norm()
    size = (left.norm(dim=1) * right.norm(dim=1)).sum()
    # Rounding of the Gram matrices is relative to the square.
    assert abs(found - expected) <= (1e-7 if cancel else 1e-12) * size


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 1e308])
@pytest.mark.parametrize("place", ["left", "right"])
def test_what_is_not_finite_is_found_while_unscaling(bad: float, place: str) -> None:
    left, right = factors(1)
    {"left": left, "right": right}[place][0, 2] = bad
    if bad == 1e308:  # the product overflows, neither factor does
        {"left": right, "right": left}[place].mul_(1e10)
    plain = torch.ones(3, dtype=torch.float64)
    for gradient in (OuterProduct(left, right), outer_products(left, right)):
        found_inf = torch.zeros(())
        torch._amp_foreach_non_finite_check_and_unscale_(
            [gradient, plain], found_inf, torch.full((), 0.5)
        )
        assert found_inf == 1.0
    assert (plain == 0.25).all()


def test_unscaling_divides_and_finds_nothing() -> None:
    lazy, dense = pair()
    built, _ = pair()
    built.add_(torch.zeros(P, K, dtype=torch.float64))
    empty, _ = pair(0)
    found_inf = torch.zeros(())
    torch._amp_foreach_non_finite_check_and_unscale_(
        [lazy, built, empty], found_inf, torch.full((), 0.5)
    )
    assert found_inf == 0.0
    same(lazy, dense / 2)
    same(built, dense / 2)
    assert lazy.factored


def test_it_can_be_saved_printed_and_loaded_safely() -> None:
    lazy, dense = pair()
    assert repr(lazy) == "OuterProduct(rows=2, shape=(7, 5), dtype=torch.float64)"
    file = io.BytesIO()
    torch.save({"grad": lazy}, file)
    file.seek(0)
    same(torch.load(file, weights_only=True)["grad"], dense)
    lazy.clamp_(0.0)
    assert repr(lazy) == repr(lazy.dense())


# --- backward -----------------------------------------------------------------------


def head(keep: bool = True) -> tuple[nn.Parameter, Owner]:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(P, K, dtype=torch.float64))
    owner = Owner()
    if keep:
        keep_factored(weight, owner)
    return weight, owner


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 2), (0,), (9,)])
@pytest.mark.parametrize("keep", [True, False])
def test_backward_is_that_of_a_linear_map(batch: tuple[int, ...], keep: bool) -> None:
    weight, owner = head(keep)
    twin = weight.detach().clone().requires_grad_()
    x = torch.randn(*batch, K, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    found, expected = dense_product(x, weight), nn.functional.linear(y, twin)
    same(found, expected)
    (found**3).sum().backward()
    (expected**3).sum().backward()
    same(x.grad, y.grad)
    few = 2 * torch.Size(batch).numel() <= K
    assert isinstance(weight.grad, OuterProduct) == (keep and few)
    same(weight.grad, twin.grad)
    del owner


def test_only_while_its_owner_lives_and_not_for_copies() -> None:
    weight, owner = head()
    twin = copy.deepcopy(weight)
    x = torch.randn(K, dtype=torch.float64)
    for parameter, factored in ((weight, True), (twin, False)):
        dense_product(x, parameter).sum().backward()
        assert isinstance(parameter.grad, OuterProduct) == factored
    del owner
    weight.grad = None
    dense_product(x, weight).sum().backward()
    assert not isinstance(weight.grad, OuterProduct)


def test_gradients_of_several_uses_add_up() -> None:
    weight, owner = head()
    twin = weight.detach().clone().requires_grad_()
    x, y = torch.randn(2, K, dtype=torch.float64)

    def loss(product: Callable[..., Tensor], w: Tensor, dense: bool) -> Tensor:
        total = product(x, w).square().sum() * product(y, w).sum()
        return total + w.sin().sum() if dense else total

    for dense in (False, False, True, False):
        loss(dense_product, weight, dense).backward()
        loss(nn.functional.linear, twin, dense).backward()
        same(weight.grad, twin.grad)
        same(
            torch.autograd.grad(loss(dense_product, weight, dense), weight)[0],
            torch.autograd.grad(loss(nn.functional.linear, twin, dense), twin)[0],
        )
    del owner


def test_what_backward_was_given_may_be_written_to_afterwards() -> None:
    weight, owner = head()
    x, g = torch.randn(K, dtype=torch.float64), torch.randn(P, dtype=torch.float64)
    expected = torch.outer(g, x)
    dense_product(x, weight).backward(g)
    x.zero_(), g.zero_()
    same(weight.grad, expected)
    del owner


def test_second_derivatives_are_right() -> None:
    weight, owner = head()
    x = torch.randn(2, K, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(dense_product, (x, weight))
    assert torch.autograd.gradgradcheck(dense_product, (x, weight))
    (penalty,) = torch.autograd.grad(
        (dense_product(x, weight) ** 3).sum(), weight, create_graph=True
    )
    assert not isinstance(penalty, OuterProduct)
    penalty.square().sum().backward()
    assert weight.grad is not None
    del owner


def test_transforms_of_functions_go_through() -> None:
    weight, owner = head()
    x = torch.randn(3, K, dtype=torch.float64)
    expected = nn.functional.linear(x, weight)
    same(torch.vmap(lambda row: dense_product(row, weight))(x), expected)
    jacobian = torch.func.jacrev(lambda w: dense_product(x[0], w))(weight.detach())
    same(jacobian, torch.func.jacfwd(lambda w: dense_product(x[0], w))(weight.detach()))
    same(torch.func.jvp(lambda w: dense_product(x, w), (weight,), (weight,))[1], expected)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        tangent = torch.autograd.forward_ad.unpack_dual(dense_product(dual, weight)).tangent
        same(tangent, expected)
    del owner


def test_autocast_reads_low_precision_and_keeps_the_dtype_of_the_weight() -> None:
    torch.manual_seed(0)
    weight, owner = nn.Parameter(torch.randn(P, K)), Owner()
    keep_factored(weight, owner)
    twin = weight.detach().clone().requires_grad_()
    x = torch.randn(K, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = dense_product(x, weight), nn.functional.linear(y, twin)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    found.float().square().sum().backward()
    expected.float().square().sum().backward()
    assert isinstance(weight.grad, OuterProduct)
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(weight.grad.dense(), twin.grad, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(x.grad, y.grad, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 2), (5,)])
def test_a_large_head_predicts_what_a_linear_map_does(
    batch: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(passes, "_LARGE", 2**14)
    weight, x = torch.randn(3000, 128), torch.randn(*batch, 128)
    expected = nn.functional.linear(x.double(), weight.double())
    found = dense_product(x, weight)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@one_graph
@settings(max_examples=10)
@given(batch=st.sampled_from([(), (2,)]))
def test_a_model_is_compiled_into_one_graph(batch: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = hl.hypernetize(nn.Linear(3, 2), {"g": hl.Uniform(0.0, 1.0)})
    optimizer = hl.optim.Adam(model.parameters())
    x, g = torch.randn(2, 3), torch.rand(batch)
    traced = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(x, g=g), model(x, g=g))
    exported = torch.export.export(model, (x,), {"g": g})
    torch.testing.assert_close(exported.module()(x, g=g), model(x, g=g))
    assert optimizer.param_groups


# --- one node that splits the prediction ----------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 64])
@pytest.mark.parametrize("columns", [16, 33, 128])
@pytest.mark.parametrize("onednn", [True, False])
def test_the_prediction_of_a_large_head(
    rows: int, columns: int, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "_LARGE", 2**14)
    weight, features = torch.randn(2**11 + 3, columns), torch.randn(rows, columns)
    twin = (features.double() @ weight.double().T).float()
    with torch.backends.mkldnn.flags(enabled=onednn):
        for held in (weight, weight.T.contiguous().T):
            found = passes.product(features, held)
            torch.testing.assert_close(found, twin, rtol=1e-4, atol=1e-4)
            found = passes.product(features.unsqueeze(1), held)
            assert found.shape == (rows, 1, len(weight))


@pytest.mark.parametrize("rows", [1, 2, 5, 64, 65])
def test_the_gradient_of_the_features_of_a_large_head(rows: int) -> None:
    weight = torch.randn(2**15 + 7, 33, dtype=torch.float64)
    gradient = torch.randn(rows, len(weight), dtype=torch.float64)
    found = passes.by_features(gradient, weight)
    torch.testing.assert_close(found, gradient @ weight, rtol=1e-11, atol=1e-9)
    if rows == 1:
        assert passes.by_features(gradient[0], weight).shape == (33,)
    other = weight.T.contiguous().T  # columns one behind another
    torch.testing.assert_close(passes.by_features(gradient, other), found, rtol=1e-11, atol=1e-9)
