"""Binding equals copying the weights, for every way in which modules hold them (design D1)."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import hyperlight as hl
from tests.models import (
    PRIMARIES,
    BoundMethod,
    Checkpointed,
    OtherMethods,
    Recurrent,
    convolutional,
    mlp,
)
from tests.reference import copied_primary, naive_theta_gradients, two_stage_gradients

every_primary = pytest.mark.parametrize("name", PRIMARIES)
quietly = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


def made(name: str) -> tuple[nn.Module, Tensor]:
    make, data = PRIMARIES[name]
    return make().double(), data().double()


@pytest.mark.parametrize(
    "head", [hl.Dense(), hl.LowRank(1), hl.ChannelScale()], ids=["dense", "low rank", "scale"]
)
@pytest.mark.parametrize("registered", [True, False])
def test_an_attribute_does_not_hide_a_predicted_weight(registered: bool, head: hl.Head) -> None:
    """FullyShardedDataParallel keeps plain tensors while it runs, beside parameters or alone."""
    net = mlp().double()
    model = hl.hypernetize(net, {"g": hl.Uniform(0.0, 1.0)}, head=head)
    x, g = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    one, many = model(x, g=0.5), model(x, g=g)
    wanted = torch.autograd.grad(one.sum(), list(model.hypernet.parameters()))
    for name, parameter in list(net.named_parameters()):
        path, _, leaf = name.rpartition(".")
        module, view = net.get_submodule(path), parameter.view(parameter.shape)
        del module._parameters[leaf]
        if registered:
            module._parameters[leaf] = view  # type: ignore[assignment]
        object.__setattr__(module, leaf, view)
    for _ in range(2):
        found = model(x, g=0.5)
        torch.testing.assert_close(found, one)
        torch.testing.assert_close(model(x, g=g), many)
        gradients = torch.autograd.grad(found.sum(), list(model.hypernet.parameters()))
        torch.testing.assert_close(gradients, wanted)


def other_weights(primary: nn.Module) -> dict[str, Tensor]:
    return {
        name: (p + 0.3 * torch.randn_like(p)).detach().requires_grad_()
        for name, p in primary.named_parameters()
    }


@quietly
@every_primary
def test_bound_equals_a_copy_with_the_weights_in_it(name: str) -> None:
    primary, x = made(name)
    theta = other_weights(primary)
    state = copy.deepcopy(primary.state_dict())
    attributes = {path: dict(m.__dict__) for path, m in primary.named_modules()}

    twin = copied_primary(primary, theta)
    bound = hl.bind(primary, theta)
    assert type(bound) is type(primary)
    y = bound(x)
    assert torch.allclose(y, twin(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(y, copied_primary(primary, {})(x), atol=1e-3), "weights unused"

    expected = naive_theta_gradients(primary, theta, lambda net: net(x).square().sum())
    y = hl.bind(primary, theta)(x)
    found = torch.autograd.grad(y.square().sum(), list(theta.values()))
    for (key, gradient), g in zip(expected.items(), found, strict=True):
        assert torch.allclose(g, gradient, rtol=1e-10, atol=1e-10), key

    # the primary is as it was, except that buffers are shared (running statistics)
    for key, value in primary.state_dict().items():
        if key in theta:
            assert torch.equal(value, state[key])
    for path, module in primary.named_modules():
        before = attributes[path]
        kept = {k for k in before if k != "weight" or name != "old weight norm"}
        assert all(module.__dict__[k] is before[k] for k in kept), path


# functional_call does not reach a parameter that is kept in a plain dict: no twin there
@quietly
@pytest.mark.parametrize("name", [name for name in PRIMARIES if name != "containers"])
def test_bound_equals_functional_call(name: str) -> None:
    primary, x = made(name)
    primary.eval()
    theta = other_weights(primary)
    expected = torch.func.functional_call(primary, theta, (x,))
    assert torch.allclose(hl.bind(primary, theta)(x), expected, rtol=1e-12, atol=1e-12)


def test_buffers_are_shared_and_running_statistics_move() -> None:
    primary, x = made("convolutional")
    twin = copied_primary(primary, {})
    model = hl.hypernetize(primary, {"g": hl.Uniform(0.0, 1.0)}, init="zero")
    model.train()
    for _ in range(3):
        assert torch.allclose(model(x, g=0.5), twin(x))
    assert torch.allclose(primary[1].running_mean, twin[1].running_mean)
    assert primary[1].num_batches_tracked == 3


def test_a_bound_network_shares_tensors_and_has_modules_of_its_own() -> None:
    primary = convolutional()
    bound = hl.bind(primary, {"4.weight": torch.zeros(3, 16)})
    predicted = {"4.weight"}
    for (name, own), (_, given) in zip(bound.named_modules(), primary.named_modules(), strict=True):
        assert own is not given, name
        assert type(own) is type(given), name
    for (name, own), (_, given) in zip(
        bound.named_parameters(), primary.named_parameters(), strict=True
    ):
        assert (own is given) == (name not in predicted), name
    for (name, own), (_, given) in zip(bound.named_buffers(), primary.named_buffers(), strict=True):
        assert own is given, name


def test_the_mode_and_the_hooks_of_a_bound_network_are_its_own() -> None:
    primary = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model = hl.hypernetize(primary, {"g": hl.Uniform(0.0, 1.0)})
    bound = model.bind(g=0.5).eval()
    assert not any(module.training for module in bound.modules())
    assert all(module.training for module in primary.modules())
    calls: list[str] = []
    for module in bound.modules():
        module.register_forward_hook(lambda *_: calls.append("after"))
        module.register_forward_pre_hook(lambda *_: calls.append("before"))
        module.register_full_backward_hook(lambda *_: calls.append("back"))
    x = torch.randn(2, 3, requires_grad=True)
    primary(x).sum().backward()
    model(x, g=0.5).sum().backward()
    assert not calls
    bound(x).sum().backward()
    assert {word: calls.count(word) for word in calls} == {"before": 4, "after": 4, "back": 4}


def test_a_child_that_was_replaced_after_the_plan_was_made_is_used() -> None:
    primary = mlp()
    model = hl.hypernetize(primary, {"g": hl.Uniform(0.0, 1.0)}, "0.*")
    x = torch.randn(4, 3)
    model(x, g=0.5)
    primary[1] = nn.Sequential(nn.ReLU(), nn.Tanh())
    expected = copied_primary(primary, model.predict(g=0.5))(x)
    assert torch.allclose(model(x, g=0.5), expected)
    del primary[1]
    expected = copied_primary(primary, model.predict(g=0.5))(x)
    assert torch.allclose(model(x, g=0.5), expected)


def test_a_child_that_was_replaced_by_one_that_reaches_for_a_target_is_followed() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = 2.0

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * x

    class Again(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layers = (layer,)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[0](x)

    primary = nn.Sequential(nn.Linear(3, 3), Scaled())
    model = hl.hypernetize(primary, {"g": hl.Uniform(0.0, 1.0)})
    x = torch.randn(4, 3)
    model(x, g=0.5)
    primary[1] = Again(primary[0])
    expected = copied_primary(primary, model.predict(g=0.5))(x)
    assert torch.allclose(model(x, g=0.5), expected)


def test_other_methods_of_a_bound_network_use_the_predicted_weights() -> None:
    primary, x = made("other methods")
    assert isinstance(primary, OtherMethods)
    theta = other_weights(primary)
    assert torch.equal(hl.bind(primary, theta).encode(x), copied_primary(primary, theta).encode(x))


def test_aliases_and_ties_stay_together() -> None:
    for name, paths in (("tied", ("embed.weight", "out.weight")), ("aliased", ())):
        primary, _ = made(name)
        bound = hl.bind(primary, other_weights(primary))
        if paths:
            assert bound.embed.weight is bound.out.weight
        else:
            assert bound.first is bound.second
    primary, _ = made("tied")
    new = torch.zeros(6, 4)
    assert hl.bind(primary, {"out.weight": new}).embed.weight is new


def test_hooks_run_and_bound_method_hooks_follow() -> None:
    class Hooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.seen: list[Tensor] = []
            self.linear.register_forward_hook(self.add_weight)

        def add_weight(self, module: nn.Module, args: object, out: Tensor) -> Tensor:
            self.seen.append(self.linear.weight)
            return out + self.linear.weight.sum() + module.weight.sum()

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)

    primary = Hooked()
    theta = other_weights(primary)
    x = torch.randn(2, 3)
    twin = Hooked()
    twin.load_state_dict(theta)
    assert torch.allclose(hl.bind(primary, theta)(x), twin(x))
    # a hook that comes after the plan was made
    model = hl.hypernetize(mlp(), {"g": hl.Uniform(0.0, 1.0)})
    calls: list[str] = []
    model(x, g=0.5)
    model.primary[0].register_forward_hook(lambda *_: calls.append("late"))
    model(x, g=0.5)
    assert calls == ["late"]


def test_an_attribute_that_appears_after_the_plan_was_made_is_followed() -> None:
    class Lazily(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.late: Callable[[Tensor], Tensor] | None = None

        def forward(self, x: Tensor) -> Tensor:
            return (self.late or self.later)(x)

    primary = Lazily()
    model = hl.hypernetize(primary, {"g": hl.Uniform(0.0, 1.0)})
    primary.later = primary.linear.forward
    x = torch.randn(2, 3)
    expected = torch.nn.functional.linear(x, *model.predict(g=0.5).values())
    assert torch.allclose(model(x, g=0.5), expected)
    primary.late = primary.linear.forward
    assert torch.allclose(model(x, g=0.5), expected)


def test_what_forward_assigns_stays_on_the_bound_copy() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.linear(x)

    primary = Counting()
    bound = hl.bind(primary, {"linear.bias": torch.zeros(3)})
    bound(torch.zeros(1, 3))
    assert (bound.calls, primary.calls) == (1, 0)


def test_an_exception_and_nesting_leave_nothing_behind() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor, fail: bool = False) -> Tensor:
            y = self.linear(x)
            if fail:
                raise RuntimeError("on purpose")
            return y

    primary = Fails()
    model = hl.hypernetize(primary, {"g": hl.Uniform(0.0, 1.0)})
    x = torch.randn(2, 3)
    before = primary(x)
    outer = model.bind(g=0.1)
    expected = outer(x)
    with pytest.raises(RuntimeError, match="on purpose"):
        model(x, fail=True, g=0.9)
    assert torch.equal(outer(x), expected)
    assert torch.equal(primary(x), before)
    assert isinstance(primary.linear.weight, nn.Parameter)


def test_threads_do_not_see_each_others_weights() -> None:
    model = hl.hypernetize(
        nn.Sequential(*(nn.Linear(16, 16) for _ in range(20))), {"g": hl.Uniform(0.0, 1.0)}
    ).double()
    x = torch.randn(4, 16, dtype=torch.float64)
    gammas = [i / 7 for i in range(8)]
    expected = [model(x, g=g).detach() for g in gammas]
    wrong: list[float] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.allclose(model(x, g=gammas[i]), expected[i], atol=1e-12):
                wrong.append(gammas[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_checkpoint_gradients_are_right_even_when_another_call_comes_between() -> None:
    primary = Checkpointed().double()
    model = hl.hypernetize(primary, {"g": hl.Uniform(0.0, 1.0)})
    x = torch.randn(4, 3, dtype=torch.float64)
    expected = two_stage_gradients(
        model,
        {"g": torch.tensor(0.2, dtype=torch.float64)},
        lambda net: net(x).square().sum(),
    )
    loss = model(x, g=0.2).square().sum()
    model(x, g=0.9)  # would change what a recomputation sees, were anything swapped in
    loss.backward()
    for key, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, expected[key], rtol=1e-9, atol=1e-12), key


def test_vmap_over_gamma_goes_through() -> None:
    model = hl.hypernetize(mlp(), {"g": hl.Uniform(0.0, 1.0)}).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    gammas = torch.rand(5, dtype=torch.float64)
    expected = torch.stack([model(x, g=g) for g in gammas])
    assert torch.allclose(torch.func.vmap(lambda g: model(x, g=g))(gammas), expected)


def closure_over_a_target() -> nn.Module:
    net = mlp()
    net.extra = lambda x: net[0](x)  # type: ignore[assignment]
    return net


def object_that_holds_a_target() -> nn.Module:
    class Helper:
        def __init__(self, layer: nn.Module) -> None:
            self.layer = layer

    net = mlp()
    net.helper = Helper(net[0])  # type: ignore[assignment]
    return net


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (closure_over_a_target, ["closure", "'extra'", "functools.partial"]),
        (object_that_holds_a_target, ["object of class Helper", "'helper'", "targets"]),
        (lambda: torch.compile(mlp()), ["before it is compiled"]),
    ],
)
def test_references_that_cannot_be_followed_are_refused(
    make: Callable[[], nn.Module], words: list[str]
) -> None:
    with pytest.raises(hl.BindError) as error:
        hl.hypernetize(make(), {"g": hl.Uniform(0.0, 1.0)})
    for word in words:
        assert word in str(error.value)


def test_a_closure_over_something_else_is_fine() -> None:
    net = mlp()
    factor = [2.0]
    net.extra = lambda x: x * factor[0]  # type: ignore[assignment]
    hl.hypernetize(net, {"g": hl.Uniform(0.0, 1.0)})
    net.part = functools.partial(torch.mul, 2.0)  # type: ignore[assignment]
    hl.hypernetize(net, {"g": hl.Uniform(0.0, 1.0)})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script_modules_are_refused() -> None:
    script = torch.jit.script(nn.Linear(3, 2))
    with pytest.raises(hl.BindError, match="TorchScript .* Hypernetize the eager module"):
        hl.hypernetize(nn.Sequential(script), {"g": hl.Uniform(0.0, 1.0)})


def test_bind_refuses_unknown_names_and_wrong_shapes() -> None:
    with pytest.raises(hl.BindError, match=r"no parameter '0.wieght'; it has .* Did you mean '0."):
        hl.bind(mlp(), {"0.wieght": torch.zeros(5, 3)})
    with pytest.raises(hl.BindError, match=r"'0.weight' has shape \(3, 5\); expected \(5, 3\)"):
        hl.bind(mlp(), {"0.weight": torch.zeros(3, 5)})


def test_recurrent_layers_use_the_predicted_weights_after_a_move() -> None:
    model = hl.hypernetize(Recurrent(nn.LSTM), {"g": hl.Uniform(0.0, 1.0)}).double()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    net = model.bind(g=0.3)
    assert all(
        a is getattr(net.rnn, n)
        for a, n in zip(net.rnn._flat_weights, net.rnn._flat_weights_names, strict=True)
    )
    assert torch.allclose(net(x), copied_primary(model.primary, model.predict(g=0.3))(x))


def test_a_bound_network_can_be_bound_again() -> None:
    primary = BoundMethod().double()
    x = torch.randn(4, 3, dtype=torch.float64)
    first, second = other_weights(primary), other_weights(primary)
    once = hl.bind(primary, {"linear.weight": first["linear.weight"]})
    twice = hl.bind(once, {"linear.bias": second["linear.bias"]})
    mixed = {"linear.weight": first["linear.weight"], "linear.bias": second["linear.bias"]}
    assert torch.allclose(twice(x), copied_primary(primary, mixed)(x))


def test_predicted_tensors_stand_where_the_parameters_were() -> None:
    class AsksItself(nn.Module):
        """Third-party networks read their dtype and device off their first parameter."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            first = next(self.parameters())
            return self.linear(x.to(first.device, first.dtype))

    primary = AsksItself().double()
    theta = other_weights(primary)
    bound = hl.bind(primary, theta)
    assert bound(torch.zeros(1, 3)).dtype == torch.float64
    assert [name for name, _ in bound.named_parameters()] == list(theta)
    assert all(p is theta[name] for name, p in bound.named_parameters())
    assert bound.linear.weight is theta["linear.weight"]
    for name, value in bound.state_dict().items():
        assert torch.equal(value, theta[name])
    predicted = hl.hypernetize(primary, {"g": hl.Uniform(0.0, 1.0)}).bind(g=0.5)
    with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
        torch.optim.SGD(predicted.parameters(), lr=0.1)
