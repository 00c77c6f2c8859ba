"""What goes wrong in other hypernetwork libraries (design, section 6): a test for each line."""

from __future__ import annotations

import copy
import functools
import gc
import io
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import hyperlight as hl
from hyperlight.lab.data import ImageSplit, digits
from hyperlight.lab.primaries import LeNet
from tests.models import Aliased, Recurrent, Tied, mlp, one_graph, vectors
from tests.reference import copied_primary, two_stage_gradients

SPACE = {"gamma": hl.Uniform(0.0, 1.0)}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks are faster on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def pretrained() -> tuple[nn.Module, ImageSplit, float]:
    """A LeNet trained on real digits, and its test accuracy."""
    data = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = LeNet(size=8)
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(8):
            for index in torch.randperm(len(data.train)).split(64):
                batch = data.train[index]
                optimizer.zero_grad()
                F.cross_entropy(net(batch.images), batch.labels).backward()
                optimizer.step()
    return net, data, accuracy(net(data.test.images), data)


def accuracy(logits: Tensor, data: ImageSplit) -> float:
    return (logits.argmax(dim=1) == data.test.labels).double().mean().item()


@pytest.mark.parametrize("inputs", [1, 32])
def test_a_pretrained_network_is_destroyed_at_step_0(inputs: int) -> None:
    net, data, plain = pretrained()
    assert plain > 0.93
    zero = hl.hypernetize(net, {"z": hl.Normal(inputs)}, init="zero")
    with torch.no_grad():
        for _ in range(5):
            logits = zero(data.test.images, **zero.sample())
            assert torch.equal(logits, net(data.test.images))
            assert accuracy(logits, data) == plain
    # and it is no dead end: the first gradient reaches the head
    F.cross_entropy(zero(data.test.images, **zero.sample()), data.test.labels).backward()
    assert zero.hypernet.head.weight.grad.abs().sum() > 0


class NamedOtherwise(nn.Module):
    """Parameters whose names do not end in ``.weight``, gains among them."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.full((1, 8), 3.0))
        self.linear = nn.Linear(8, 64)
        self.norm = nn.LayerNorm(64)
        self.scale = nn.Parameter(torch.full((64,), 5.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x + self.token)) * self.scale


@pytest.mark.parametrize("targets", [None, "*"])
def test_biases_start_wide_gains_at_0_and_other_names_without_theta0(targets: object) -> None:
    net = NamedOtherwise()
    own = {name: p.detach().clone() for name, p in net.named_parameters()}
    squares = dict.fromkeys(own, 0.0)
    runs = 30
    for _ in range(runs):
        model = hl.hypernetize(net, SPACE, targets, init="fan_out")
        for name, theta in model.predict(gamma=0.4).items():
            squares[name] += (theta - own[name]).square().sum().item() / runs
    # a predicted tensor changes by about norm sqrt(2), whatever its name, and a bias starts at 0
    predicted = {"token", "linear.weight", "scale"} | ({"norm.weight"} if targets else set())
    for name in predicted:
        assert 0.6 < squares[name] ** 0.5 < 2.8, name
    for name in set(own) - predicted:
        assert squares[name] == 0.0, name


def test_theta0_in_another_order_is_scrambled() -> None:
    net, x = mlp(), vectors()
    model = hl.hypernetize(net, SPACE, init="zero")
    other = {name: torch.randn_like(p) for name, p in net.named_parameters()}
    backwards = dict(reversed(other.items()))
    expected = copied_primary(net, other)(x)

    assert torch.equal(hl.bind(net, backwards)(x), expected)
    model.primary.load_state_dict(backwards)
    assert torch.equal(model(x, gamma=0.3), expected)
    assert list(model.predict(gamma=0.3)) == list(other)
    # a hypernetwork that names its tensors in another order
    shapes = {name: t.shape for name, t in backwards.items()}
    joined = hl.HyperModel(net, hl.HyperNet(SPACE, shapes, init="fan_out"))
    delta = joined.hypernet(gamma=0.3)
    for name, theta in joined.predict(gamma=0.3).items():
        assert torch.equal(theta, other[name] + delta[name]), name


def test_weights_stay_set_after_an_exception_and_unknown_names_are_ignored() -> None:
    seen: list[weakref.ref[Tensor]] = []

    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor, fail: bool = False) -> Tensor:
            y = self.inner(x)
            seen.append(weakref.ref(self.inner[0].weight))
            if fail:
                raise RuntimeError("on purpose")
            return y

    net, x = Fails(), vectors()
    model = hl.hypernetize(net, SPACE)
    before = net(x)
    seen.clear()
    outer = model.bind(gamma=0.1)
    expected = outer.inner(x)
    with pytest.raises(RuntimeError, match="on purpose"):
        model(x, fail=True, gamma=0.9)
    model(x, gamma=0.5)
    assert torch.equal(outer.inner(x), expected), "an inner use wiped the outer one"
    assert torch.equal(net(x), before)
    seen.pop()
    gc.collect()
    assert [ref() for ref in seen] == [None, None], "weights and their graph are still held"

    weight = torch.zeros(5, 3)
    with pytest.raises(hl.BindError, match="no parameter 'inner.0.wieght'"):
        hl.bind(net, {"inner.0.weight": weight, "inner.0.wieght": weight})
    with pytest.raises(hl.ConfigurationError, match="'other', which Fails has no parameter for"):
        hl.HyperModel(net, hl.HyperNet(SPACE, {"inner.0.weight": (5, 3), "other": (1,)}))
    with pytest.raises(hl.InputError, match="'gamma' is missing. 'gama' was given"):
        model(x, gama=0.3)


@one_graph
def test_a_range_check_in_forward_reads_the_device_and_breaks_the_graph() -> None:
    x = vectors()
    model = hl.hypernetize(mlp(), SPACE)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    g = torch.tensor(0.3)
    assert torch.allclose(compiled(x, gamma=g), model(x, gamma=g))
    program = torch.export.export(model, (x,), {"gamma": g})
    assert torch.allclose(program.module()(x, gamma=g), model(x, gamma=g))
    gammas = torch.tensor([0.1, 0.9])
    expected = torch.stack([model(x, gamma=g) for g in gammas])
    found = torch.func.vmap(lambda g: model(x, gamma=g))(gammas)
    assert torch.allclose(found, expected, atol=1e-6)
    # nothing can be read from this device: any look at a value is an error
    unreadable = copy.deepcopy(model).to("meta")
    assert unreadable(x.to("meta"), gamma=g.to("meta")).device.type == "meta"


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 1)])
def test_several_gammas_are_rejected_and_one_loses_its_batch_dimension(
    batch: tuple[int, ...],
) -> None:
    model = hl.hypernetize(mlp(), SPACE).double()
    gamma = torch.rand(batch, dtype=torch.float64)
    theta = model.predict(gamma=gamma)
    for name, parameter in model.primary.named_parameters():
        assert theta[name].shape == batch + parameter.shape
        flat = theta[name].reshape(-1, *parameter.shape)
        for one, g in zip(flat, gamma.reshape(-1), strict=True):
            assert torch.allclose(one, model.predict(gamma=g)[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("samples", [1, 4])
def test_a_forward_takes_one_gamma_alone(samples: int) -> None:
    model, x = hl.hypernetize(mlp(), SPACE).double(), vectors().double()[:samples]
    gamma = torch.rand(samples, dtype=torch.float64)
    y = model(x, gamma=gamma)
    assert len(y) == samples
    for i in range(samples):
        torch.testing.assert_close(y[i : i + 1], model(x[i : i + 1], gamma=gamma[i]))


def test_pickle_save_and_deepcopy_fail_and_repr_shows_no_size() -> None:
    model, x = hl.hypernetize(mlp(), SPACE), vectors()
    expected = model(x, gamma=0.3)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
        copy.deepcopy(model),
    ):
        assert type(twin) is hl.HyperModel
        assert torch.equal(twin(x, gamma=0.3), expected)
    text = repr(model)
    for size in ("in_features=3, out_features=5", "Uniform", "predicts: 32 entries in 4 tensors"):
        assert size in text


def test_tied_aliased_normalised_and_recurrent_weights_are_split_skipped_or_stale() -> None:
    def check(net: nn.Module, x: Tensor, tensors: int) -> nn.Module:
        net = net.double()
        model = hl.hypernetize(net, SPACE)
        assert len(model.predict(gamma=0.3)) == tensors
        x = x.double()
        for gamma in (0.2, 0.8):
            twin = copied_primary(net, model.predict(gamma=gamma))
            assert torch.allclose(model(x, gamma=gamma), twin(x), rtol=1e-12, atol=1e-12)
        bound: nn.Module = model.bind(gamma=0.3)
        return bound

    tied = check(Tied(), vectors(), tensors=1)
    assert tied.embed.weight is tied.out.weight
    aliased = check(Aliased(), vectors(), tensors=2)
    assert aliased.first is aliased.second
    check(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), vectors(), tensors=3)
    for kind in (nn.RNN, nn.LSTM, nn.GRU):
        check(Recurrent(kind), torch.randn(2, 5, 3), tensors=10)


def test_activation_checkpoints_recompute_with_the_wrong_weights() -> None:
    class Segments(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = torch.tanh(checkpoint(layer, x, use_reentrant=False))
            return x

    net, x = Segments().double(), vectors().double()
    model = hl.hypernetize(net, SPACE)
    gamma = torch.tensor(0.2, dtype=torch.float64)

    def loss(f: nn.Module) -> Tensor:
        return f(x).square().sum()

    expected = two_stage_gradients(model, {"gamma": gamma}, loss)
    value = model(x, gamma=gamma).square().sum()
    model(x, gamma=0.9)  # another call, between the forward and the recomputation
    value.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], rtol=1e-9, atol=1e-12), name


ORDER = """
import torch, hyperlight as hl
net = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(12)))
targets = {"1*.weight", "*.bias", torch.nn.Linear}
print(list(hl.hypernetize(net, {"g": hl.Uniform(0, 1)}, targets).predict(g=0.5)))
"""


def test_batch_norm_dropout_and_recurrent_layers_fail_obscurely_per_sample() -> None:
    x, gamma = torch.randn(3, 5, 4), torch.rand(3)
    normed = hl.hypernetize(nn.Sequential(nn.Conv1d(5, 6, 1), nn.BatchNorm1d(6)), SPACE)
    words = r"BatchNorm1d '1' in training mode.*model\.eval\(\).*model\.bind\(\.\.\.\)\(x\)"
    with pytest.raises(hl.InputError, match=words):
        normed(x, gamma=gamma)
    assert normed.bind(gamma=gamma)(x).mean((0, 2)).abs().max() < 1e-5  # over the whole batch
    assert normed.eval()(x, gamma=gamma).shape == (3, 6, 4)
    dropping = hl.hypernetize(nn.Sequential(nn.Linear(4, 100), nn.Dropout()), SPACE)
    y = dropping(x[:1].expand(3, -1, -1), gamma=torch.full((3,), 0.5))
    assert not torch.equal(y[0] == 0, y[1] == 0)
    recurrent = hl.hypernetize(nn.LSTM(4, 6, batch_first=True), SPACE)
    y, (h, c) = recurrent(x, gamma=gamma)
    assert recurrent.last_run.way == "batch"
    alone, (h1, c1) = recurrent(x[1:2], gamma=gamma[1])
    torch.testing.assert_close(y[1:2], alone)
    torch.testing.assert_close((h[:, 1:2], c[:, 1:2]), (h1, c1))


def test_gigabytes_are_allocated_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    primary = nn.Linear(1000, 1000)
    summary = hl.hypernetize(primary, SPACE, hidden=(16, 128), device="meta").summary()
    assert summary.head.parameters == 128 * (1000 * 1000 + 1000)
    assert summary.parameters > 128 * sum(p.numel() for p in primary.parameters())
    assert "MiB" in str(summary)
    monkeypatch.setattr("hyperlight.memory.available_memory", lambda device: 100 * 2**20)
    with pytest.raises(hl.MemoryLimitError) as error:
        hl.hypernetize(primary, SPACE, hidden=(16, 128))
    for words in ("MiB", "'weight'", "head="):
        assert words in str(error.value)


def test_the_order_of_parameters_depends_on_the_hash_seed() -> None:
    found = set()
    for seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", ORDER],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        found.add(ran.stdout)
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(12)))
    assert found == {f"{[name for name, _ in net.named_parameters()]}\n"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", [nn.ELU, nn.Mish, nn.PReLU, nn.Softplus])
def test_other_precisions_devices_activations_and_scalar_inputs_crash(
    dtype: torch.dtype, activation: type[nn.Module]
) -> None:
    net = nn.Sequential(nn.Linear(3, 4), activation(), nn.Linear(4, 2)).to(dtype)
    model = hl.hypernetize(net, SPACE, activation=activation)
    x = vectors().to(dtype)
    for gamma in (0.3, torch.tensor(0.3), torch.tensor(0.3, dtype=dtype)):
        y = model(x, gamma=gamma)
        assert y.dtype == dtype
        y.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    moved = copy.deepcopy(model).to("meta")
    assert moved(x.to("meta"), gamma=0.3).shape == y.shape
