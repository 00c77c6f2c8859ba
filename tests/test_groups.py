"""Parameter groups: every parameter in one, and steps as long as in the plain network."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import hyperlight as hl
from hyperlight.groups import _gradient as random_gradients
from hyperlight.lab.data import Batches, Request, load_images
from hyperlight.lab.primaries import LeNet
from tests.models import PRIMARIES, mlp
from tests.reference.steps import Batch, distances, first_step, spread_draws

SPACE = {"g": hl.Uniform(0.0, 1.0)}
HEADS = {
    "dense": hl.Dense(),
    "low rank": hl.LowRank(1),
    "chunked": hl.Chunked(8),
    "mixed": {"*.weight": hl.LowRank(1), "*": hl.Dense()},
}
ORDER = ["theta0", "trunk", "head", "unpredicted"]


def names_of(model: hl.HyperModel, groups: Sequence[dict[str, Any]]) -> dict[str, set[str]]:
    """The names of the parameters by the first word of their group's name."""
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, set[str]] = {}
    for group in groups:
        first = found.setdefault(group["name"].partition(".")[0], set())
        first.update(names[id(p)] for p in group["params"])
    return found


# --- which parameters are in which group ------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("primary", ["mlp", "convolutional", "weight norm", "lstm"])
def test_every_trainable_parameter_stands_in_one_group(primary: str, head: str) -> None:
    inputs = {**SPACE, "site": hl.Categorical(3)}
    model = hl.hypernetize(PRIMARIES[primary][0](), inputs, head=HEADS[head])
    groups = hl.parameter_groups(model, 1e-3)
    firsts = [group["name"].partition(".")[0] for group in groups]
    assert firsts == sorted(firsts, key=ORDER.index)
    assert len({group["name"] for group in groups}) == len(groups)
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in model.parameters()}
    found = names_of(model, groups)
    predicted = {f"primary.{name}" for name in model.hypernet.shapes}
    own = {n for n, _ in model.named_parameters() if n.startswith("primary.")}
    assert found["theta0"] == own & predicted
    assert found.get("unpredicted", set()) == own - predicted
    assert found["head"] == {
        n for n, _ in model.named_parameters() if n.startswith("hypernet.head.")
    }
    assert "hypernet.embeddings.0.weight" in found["trunk"]


def test_groups_are_named_by_the_path_of_what_has_a_rate_of_its_own() -> None:
    inputs = {**SPACE, "site": hl.Categorical(3)}
    model = hl.hypernetize(mlp(), inputs, hidden=(4, 5), activation="prelu", head=hl.Chunked(8))
    trunk = [
        f"trunk.{layer}"
        for layer in ("embeddings.0", "layers.0", "layers.1", "activations.0", "activations.1")
    ]
    head = [f"head.{name}" for name in ("weight", "embedding", "scale")]
    assert [g["name"] for g in hl.parameter_groups(model, 1e-3)] == ["theta0", *trunk, *head]
    single = hl.hypernetize(mlp(), SPACE, hidden=(4,))
    assert [g["name"] for g in hl.parameter_groups(single, 1e-3)] == ["theta0", "trunk", "head"]


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    model = hl.hypernetize(mlp(), SPACE, hidden=(4, 4))
    model.primary.requires_grad_(False)
    model.hypernet.trunk.layers[0].weight.requires_grad_(False)
    groups = hl.parameter_groups(model, 1e-3)
    assert [group["name"] for group in groups] == ["trunk.layers.0", "trunk.layers.1", "head"]
    assert "hypernet.trunk.layers.0.weight" not in names_of(model, groups)["trunk"]
    model.hypernet.head.requires_grad_(False)
    model.hypernet.trunk.layers[0].requires_grad_(False)
    assert [group["name"] for group in hl.parameter_groups(model, 1e-3)] == ["trunk"]
    model.requires_grad_(False)
    with pytest.raises(hl.ConfigurationError, match="nothing to train. Unfreeze"):
        hl.parameter_groups(model, 1e-3)


def rates_of(model: hl.HyperModel, lr: float, **options: Any) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in hl.parameter_groups(model, lr, **options)}


@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_theta0_and_a_dense_head_share_the_step(rule: str) -> None:
    """The head's is divided by the size of the features beside that."""
    model = hl.hypernetize(mlp(), SPACE)
    draws = model.sample((256,), generator=torch.Generator().manual_seed(0))
    f = model.hypernet.features(**draws).detach()
    size = float((f.abs() if rule == "adam" else f.square()).sum(-1).mean())
    close = functools.partial(pytest.approx, rel=6e-3)  # three digits
    rates = functools.partial(rates_of, model, 6e-3, rule=rule)
    everything = rates()
    assert everything["theta0"] == 3e-3
    assert everything["head"] == close(3e-3 / size)
    model.primary.requires_grad_(False)
    assert rates()["head"] == close(6e-3 / size)
    model.hypernet.trunk.requires_grad_(False)
    model.hypernet.projection.requires_grad_(False)
    assert rates() == {"head": close(6e-3 / size)}
    model.primary.requires_grad_(True)
    assert rates() == {"theta0": 3e-3, "head": close(3e-3 / size)}
    model.primary[0].requires_grad_(False)  # 20 of 32 entries
    assert rates() == {"theta0": 3e-3, "head": close(6e-3 * (1 - 12 / 64) / size)}
    model.hypernet.head.requires_grad_(False)
    assert rates() == {"theta0": 6e-3}


def test_theta0_has_all_of_the_step_where_the_head_is_frozen() -> None:
    model = hl.hypernetize(mlp(), SPACE, head={"0.*": hl.Dense(), "*": hl.Dense()})
    model.hypernet.head.parts[1].requires_grad_(False)
    assert rates_of(model, 1.0)["theta0"] == pytest.approx((0.5 * 20 + 12) / 32, rel=6e-3)


def test_parameters_that_are_not_predicted_keep_the_rate() -> None:
    primary = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model = hl.hypernetize(primary, SPACE)
    groups = hl.parameter_groups(model, 3e-3, weight_decay={"unpredicted": 0.5})
    assert names_of(model, groups)["unpredicted"] == {"primary.1.weight", "primary.1.bias"}
    assert (groups[-1]["lr"], groups[-1]["weight_decay"]) == (3e-3, 0.5)
    assert groups[0]["lr"] == 1.5e-3
    # beside them alone nothing shares
    model.hypernet.requires_grad_(False)
    assert rates_of(model, 3e-3) == {"theta0": 3e-3, "unpredicted": 3e-3}
    for layer in (primary[0], primary[2]):
        layer.requires_grad_(False)
    assert rates_of(model, 3e-3) == {"unpredicted": 3e-3}


def test_a_parameter_that_head_and_primary_share_takes_the_rate_of_the_head() -> None:
    model = hl.hypernetize(nn.Linear(3, 1, bias=False), SPACE, hidden=(3,))
    model.primary.weight = nn.Parameter(torch.randn(1, 3))
    extra = nn.Linear(3, 3, bias=False)
    extra.weight = model.hypernet.head.weight
    model.primary.add_module("extra", extra)
    groups = {group["name"]: group["params"] for group in hl.parameter_groups(model, 1.0)}
    assert [id(p) for p in groups["head"]] == [id(extra.weight)]
    assert [id(p) for p in groups["theta0"]] == [id(model.primary.weight)]
    assert "unpredicted" not in groups


# --- optimizers and schedulers ----------------------------------------------------------

OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("primary", ["mlp", "tied"])
def test_torch_optimizers_and_schedulers_take_the_groups(primary: str, optimizer: str) -> None:
    model = hl.hypernetize(PRIMARIES[primary][0](), SPACE, hidden=(16, 128))
    rule = "sgd" if optimizer == "sgd" else "adam"
    decays = {"theta0": 0.5, "trunk": 0.25}
    groups = hl.parameter_groups(model, 1e-2, rule=rule, weight_decay=decays)
    made = OPTIMIZERS[optimizer](groups)
    rates = [group["lr"] for group in made.param_groups]
    assert [group["weight_decay"] for group in made.param_groups] == [0.5, 0.25, 0.25, 0.0]
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        made, max_lr=rates, total_steps=10, cycle_momentum=False
    )
    x = PRIMARIES[primary][1]()
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        made.zero_grad()
        model(x, g=0.3).square().mean().backward()
        made.step()
        scheduler.step()
    moved = [name for name, t in model.state_dict().items() if not torch.equal(t, before[name])]
    assert set(moved) == set(before)
    # an optimizer's state goes through a save and a load
    other = OPTIMIZERS[optimizer](hl.parameter_groups(model, 1e-2, rule=rule))
    other.load_state_dict(made.state_dict())
    names = ["theta0", "trunk.layers.0", "trunk.layers.1", "head"]
    assert [group["name"] for group in other.param_groups] == names


def _huggingface(name: str) -> Callable[[torch.optim.Optimizer], Any]:
    from transformers import get_scheduler

    return lambda optimizer: get_scheduler(name, optimizer, 2, 10)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[group["lr"] for group in optimizer.param_groups], total_steps=10
    ),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
    "plateau": lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
    "linear of transformers": _huggingface("linear"),
    "cosine of transformers": _huggingface("cosine"),
    "constant with warmup of transformers": _huggingface("constant_with_warmup"),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_keep_the_proportions_of_the_rates(scheduler: str) -> None:
    groups = hl.parameter_groups(hl.hypernetize(mlp(), SPACE), 1e-2)
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.Adam(groups)
    made = SCHEDULERS[scheduler](optimizer)
    seen = []
    for _ in range(8):
        optimizer.step()
        made.step(*[1.0] if scheduler == "plateau" else [])
        seen.append([group["lr"] for group in optimizer.param_groups])
    assert len({now[0] for now in seen}) > 1  # it does something
    assert max(now[0] for now in seen) <= rates[0]
    for now in seen:
        assert now == pytest.approx([now[0] * rate / rates[0] for rate in rates])


# --- the call leaves no trace -----------------------------------------------------------


def states(model: hl.HyperModel) -> list[Any]:
    found: list[Any] = [(module, module.training) for module in model.modules()]
    found += [(p, p.requires_grad, p.grad, p._version) for p in model.parameters()]
    return found


@pytest.mark.parametrize("head", HEADS)
def test_the_call_changes_nothing(head: str) -> None:
    model = hl.hypernetize(mlp(), {"z": hl.Normal(4), "c": hl.Categorical(3)}, head=HEADS[head])
    model.hypernet.trunk.activations.eval()  # modes may differ
    model.primary[0].requires_grad_(False)
    x, z = torch.randn(2, 3), model.sample()
    loss = model(x, **z).square().mean()  # a graph from before stays good
    values, before = copy.deepcopy(model.state_dict()), states(model)
    random = torch.get_rng_state()
    first = hl.parameter_groups(model, 1e-3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, values[name])
    assert [[*map(id, a)] for a in states(model)] == [[*map(id, b)] for b in before]
    assert torch.equal(torch.get_rng_state(), random)
    second = hl.parameter_groups(model, 1e-3)
    assert [group["lr"] for group in first] == [group["lr"] for group in second]
    loss.backward()


def test_an_objective_leaves_no_trace() -> None:
    """Running means, gradients, modes and random numbers are as before."""
    primary = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model = hl.hypernetize(primary, SPACE, head=hl.LowRank(1))
    values, before = copy.deepcopy(model.state_dict()), states(model)
    x, modes = torch.randn(5, 3), []
    random = torch.get_rng_state()

    def objective(net: nn.Module) -> Tensor:
        modes.append(net.training)
        return net(x).square().mean()

    hl.parameter_groups(model, 1e-3, rule="sgd", objective=objective)
    assert modes
    assert all(modes)
    for name, value in model.state_dict().items():
        assert torch.equal(value, values[name]), name
    assert [[*map(id, a)] for a in states(model)] == [[*map(id, b)] for b in before]
    assert torch.equal(torch.get_rng_state(), random)


class Breaks(hl.Dense):
    """Fails in the prediction after so many."""

    left = 10**9

    def forward(self, features: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of order")
        return super().forward(features)


@pytest.mark.parametrize("after", range(7))
def test_parameters_are_put_back_after_an_error(after: int) -> None:
    model = hl.hypernetize(mlp(), SPACE, head=Breaks())
    values = copy.deepcopy(model.state_dict())
    model.hypernet.head.left = after
    with pytest.raises(RuntimeError, match="out of order"):
        hl.parameter_groups(model, 1e-3)
    model.hypernet.head.left = 10**9
    assert all(torch.equal(t, values[name]) for name, t in model.state_dict().items())
    assert all(module.training for module in model.modules())


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("head", ["dense", "chunked"])
def test_contexts_around_the_call_make_no_difference(head: str, context: str) -> None:
    model = hl.hypernetize(mlp(), SPACE, head=HEADS[head])
    expected = rates_of(model, 1e-3)
    with CONTEXTS[context]():
        assert rates_of(model, 1e-3) == expected
    model.hypernet.eval()
    assert rates_of(model, 1e-3) == expected


# --- how far a step goes ----------------------------------------------------------------


def assert_one_on_average(shares: list[float]) -> None:
    """Within 5 standard errors, where 1 is itself the mean over 256 draws; none far off."""
    deviation = torch.tensor(shares).std().item()
    error = deviation * (1 / len(shares) + 1 / 256) ** 0.5
    assert error < 0.15
    assert sum(shares) / len(shares) == pytest.approx(1.0, abs=5 * error + 6e-3)
    assert min(shares) > 0.1
    assert max(shares) < 4.0


# What else trains beside the head.
BESIDE = pytest.mark.parametrize("beside", ["nothing", "theta0"])


def train_alone(model: hl.HyperModel, beside: str) -> None:
    """Freeze all but the head and what trains beside it."""
    model.hypernet.trunk.requires_grad_(False)
    model.primary.requires_grad_(beside == "theta0")


@pytest.mark.parametrize("width", [8, 64, 512])
@pytest.mark.parametrize("dimensions", [1, 32])
@pytest.mark.parametrize("encoding", [hl.CosSin(), hl.CosSin(per_input=True)], ids=["unit", "each"])
@BESIDE
def test_one_step_of_adam_moves_predicted_weights_by_the_rate(
    width: int, dimensions: int, encoding: nn.Module, beside: str
) -> None:
    """The first step of Adam is rate x sign(gradient), so that of a predicted weight is exactly
    the head's rate x |f|_1, and that of theta0 beside it: the rate on average over the inputs."""
    torch.manual_seed(1)
    model = hl.hypernetize(
        mlp().double(), {"z": hl.Normal(dimensions)}, hidden=(width,), encoding=encoding
    )
    rate = 1e-4
    train_alone(model, beside)
    groups = hl.parameter_groups(model, rate)
    begin = copy.deepcopy(model.state_dict())
    x, y = torch.randn(16, 3).double(), torch.randn(16, 2).double()
    moved = []
    for _ in range(40):
        model.load_state_dict(begin)
        optimizer = torch.optim.Adam(groups, eps=1e-30)
        z = model.sample()
        before = model.predict(**z)
        F.mse_loss(model(x, **z), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        after = model.predict(**z)
        steps = torch.cat([(after[name] - before[name]).abs().flatten() for name in before])
        assert torch.allclose(steps, steps[0].expand_as(steps), rtol=1e-6)
        moved.append(steps[0].item() / rate)
    assert_one_on_average(moved)


def steps_beside_plain(
    model: hl.HyperModel, groups: list[dict[str, Any]], rate: float, draws: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """How far the first step of SGD moves the predicted weights, and how far one of the plain
    network at this rate would have, for draws of the inputs.
    """
    (first, *_, last) = model.primary.children()
    begin = copy.deepcopy(model.state_dict())
    x = torch.randn(16, first.in_features).double()
    y = torch.randn(16, last.out_features).double()
    for _ in range(draws):
        model.load_state_dict(begin)
        z = model.sample()
        before = {name: t.detach().requires_grad_() for name, t in model.predict(**z).items()}
        loss = F.mse_loss(hl.bind(model.primary, before)(x), y)
        plain = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(before.values()))])
        F.mse_loss(model(x, **z), y).backward()
        made = torch.optim.SGD(groups)
        made.step()
        made.zero_grad()
        after = model.predict(**z)
        moved = torch.cat([(after[name] - before[name]).flatten() for name in before])
        yield moved.detach(), -rate * plain


@pytest.mark.parametrize("width", [8, 512])
@pytest.mark.parametrize("dimensions", [1, 32])
@BESIDE
def test_one_step_of_sgd_moves_predicted_weights_as_in_the_plain_network(
    width: int, dimensions: int, beside: str
) -> None:
    torch.manual_seed(1)
    model = hl.hypernetize(mlp().double(), {"z": hl.Normal(dimensions)}, hidden=(width,))
    rate = 1e-3
    train_alone(model, beside)
    groups = hl.parameter_groups(model, rate, rule="sgd")
    shares = []
    for moved, expected in steps_beside_plain(model, groups, rate, draws=40):
        share = float(moved @ expected / expected.square().sum())
        assert torch.allclose(moved, share * expected, rtol=1e-6, atol=1e-15)  # the same direction
        shares.append(share)
    assert_one_on_average(shares)


# Parts that the rules were not chosen on.


class Gelu(nn.Sequential):
    """A regression whose inputs are never zero."""

    def __init__(self, width: int = 40) -> None:
        super().__init__(nn.Linear(20, width), nn.GELU(), nn.Linear(width, 24), nn.Tanh())
        self.append(nn.Linear(24, 10))


class Images(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Unflatten(1, (1, 4, 5)), nn.Conv2d(1, 12, 3, padding=1), nn.SiLU(), nn.Flatten()
        )
        self.append(nn.Linear(240, 10))


def batch_of(index: int) -> Batch:
    generator = torch.Generator().manual_seed(index)
    x = torch.randn((48, 20), generator=generator, dtype=torch.float64)
    y = torch.tanh(x[:, :10] - x[:, 10:]) + x[:, 3:13].square()
    return x, y


def loss_of(network: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(network(batch[0]), batch[1])


class Gated(hl.Head):
    """Two layers that are added, one of which goes through a gate of every tensor."""

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        total = sum(shape.numel() for shape in self.shapes.values())
        self.plain = nn.Linear(self.features, total, dtype=dtype, device=device)
        self.gated = nn.Linear(self.features, total, dtype=dtype, device=device)
        self.gates = nn.ParameterList(
            torch.ones(1, dtype=dtype, device=device) for _ in self.shapes
        )

    def reset_parameters(self, init: Any, generator: torch.Generator | None = None) -> None:
        for layer in (self.plain, self.gated):
            nn.init.normal_(layer.weight, 0.0, 0.03, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        pairs = zip(self.gates, self.shapes.values(), strict=True)
        gate = torch.cat([one.expand(shape.numel()) for one, shape in pairs])
        return self.plain(features) + gate * self.gated(features)


class Separate(hl.Head):
    """A layer of its own for every tensor, behind a shared one, in a predict of its own."""

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        self.mixer = nn.Linear(self.features, 30, dtype=dtype, device=device)
        self.out = nn.ModuleList(
            nn.Linear(30, shape.numel(), bias=False, dtype=dtype, device=device)
            for shape in self.shapes.values()
        )

    def reset_parameters(self, init: Any, generator: torch.Generator | None = None) -> None:
        for layer in self.out:
            nn.init.normal_(layer.weight, 0.0, 0.02, generator=generator)

    def predict(self, features: Tensor) -> dict[str, Tensor]:
        mixed = torch.tanh(self.mixer(features))
        pairs = zip(self.shapes.items(), self.out, strict=True)
        return {n: out(mixed).reshape(*features.shape[:-1], *s) for (n, s), out in pairs}

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat(
            [t.flatten(features.ndim - 1) for t in self.predict(features).values()], -1
        )


class Factors(hl.Head):
    """Predicts two factors of every tensor, with the features squashed."""

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        def several(sizes: Iterable[int]) -> nn.ParameterList:
            return nn.ParameterList(
                torch.empty(size, 2, self.features, dtype=dtype, device=device) for size in sizes
            )

        self.left = several(shape[0] for shape in self.shapes.values())
        self.right = several(shape[1:].numel() for shape in self.shapes.values())

    def reset_parameters(self, init: Any, generator: torch.Generator | None = None) -> None:
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.0, 0.15, generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        f = torch.tanh(2.0 * features)
        pairs = zip(self.left, self.right, strict=True)
        products = [torch.einsum("ark,...k,brl,...l->...ab", a, f, b, f) for a, b in pairs]
        return torch.cat([t.flatten(-2) for t in products], dim=-1)


SETTINGS: dict[str, dict[str, Any]] = {
    "dense, narrow": {"hidden": (40, 6)},
    "dense, wide": {"hidden": (300, 700), "activation": "silu"},
    "dense, deep": {"hidden": (48,) * 7, "activation": "relu"},
    "dense, no trunk": {"hidden": ()},
    "dense, 20 inputs": {"inputs": {"z": hl.Normal(20)}, "hidden": (50, 40)},
    "dense, categories": {"inputs": {"c": hl.Categorical(7, features=5)}, "hidden": (30,)},
    "dense, of two kinds": {"inputs": {"c": hl.Categorical(4), "t": hl.LogUniform(1e-2, 1.0)}},
    "dense, zero": {"init": "zero"},
    "dense, encoder": {"inputs": {"z": hl.Vector(9)}, "encoding": "encoder"},
    "low rank": {"head": hl.LowRank(3), "hidden": (32, 24)},
    "low rank, deep": {"head": hl.LowRank(2), "hidden": (200,) * 4},
    "chunked": {"head": hl.Chunked(150), "hidden": (40,)},
    "chunked, wide": {"head": hl.Chunked(77), "hidden": (32, 600)},
    "mixed": {"head": {"*bias": hl.Dense(), "4*": hl.Chunked(20), "*": hl.LowRank(3)}},
    "gated": {"head": Gated()},
    "separate": {"head": Separate(), "hidden": (20, 60)},
    "factors": {"head": Factors()},
    "channel scale": {"head": hl.ChannelScale(), "hidden": (32, 24)},
    "per layer": {"head": hl.PerLayer(rank=2), "hidden": (32, 24)},
    "per layer, all entries": {"head": hl.PerLayer(8, 16), "hidden": (32, 24)},
}
# With SGD they move by the square of what the gradient happens to have in common with them.
BILINEAR = ("low rank", "chunked", "mixed", "factors", "channel scale", "per layer")


class Encoder(hl.Encoding):
    """A network of three layers as the encoding."""

    normalized = False

    def __init__(self, inputs: int = 9) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.net.extend([nn.Linear(64, 16), nn.LayerNorm(16, elementwise_affine=False)])

    def output_size(self, inputs: int) -> int:
        return 16

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) / 4.0


def model_of(
    setting: str, primary: Callable[[], nn.Module] = Gelu, *, frozen: bool = False, seed: int = 0
) -> hl.HyperModel:
    options = {"inputs": SPACE, **SETTINGS[setting]}
    torch.manual_seed(seed)
    if options.get("encoding") == "encoder":
        options["encoding"] = Encoder()
    model = hl.hypernetize(primary().double(), **options)
    model.primary.requires_grad_(not frozen)
    return model


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023: the sign of a momentum."""

    def __init__(self, params: Any, lr: float = 1e-4, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    update = (0.9 * mean + 0.1 * p.grad).sign()
                    p.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(
                        update, alpha=group["lr"]
                    )
                    mean.lerp_(p.grad, 0.01)


def muon(parameters: Any, lr: float) -> torch.optim.Optimizer:
    """Muon for matrices, Adam for the rest."""
    kind: Any = torch.optim.Muon if parameters[0].ndim == 2 else torch.optim.Adam
    return kind(parameters, lr=lr)


class MuonAndAdam:
    """Both, over groups."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.made: list[torch.optim.Optimizer] = []
        for kind, matrices in ((torch.optim.Muon, True), (torch.optim.Adam, False)):
            made = [
                {**g, "params": [p for p in g["params"] if (p.ndim == 2) == matrices]}
                for g in groups
            ]
            self.made.append(kind(made, weight_decay=0.0))

    def step(self) -> None:
        for optimizer in self.made:
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.made:
            optimizer.zero_grad()


STEPPERS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "adam": ("adam", functools.partial(torch.optim.Adam, eps=1e-30)),
    "sgd": ("sgd", torch.optim.SGD),
    "lion": ("adam", Lion),
    "lion, by its class": (Lion, Lion),
    "adafactor": (torch.optim.Adafactor, torch.optim.Adafactor),
    "muon": (muon, MuonAndAdam),
}


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_first_step_goes_as_far_as_that_of_the_plain_network(
    setting: str, optimizer: str, frozen: bool
) -> None:
    rule, make = STEPPERS[optimizer]
    model = model_of(setting, frozen=frozen)
    groups = hl.parameter_groups(model, 1e-6, rule=rule)
    ratio = first_step(model, groups, 1e-6, make, loss_of, batch_of)
    low, high = (0.8, 1.25)
    if optimizer == "sgd" and setting.startswith(BILINEAR):  # without an objective
        low, high = (0.5, 2.2 if setting == "channel scale" else 2.0)
    assert low <= ratio <= high, ratio


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("setting", ["chunked", "chunked, wide", "mixed", "per layer, all entries"])
def test_the_first_step_is_right_if_it_was_measured_on_an_excerpt(
    setting: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"chunked": 50, "chunked, wide": 25, "mixed": 6}.get(setting, 200)
    monkeypatch.setattr("hyperlight.groups._ROWS", rows)
    rule, make = STEPPERS[optimizer]
    model = model_of(setting, seed=1)
    assert model.hypernet.head.excerpt(rows)[1]
    groups = hl.parameter_groups(model, 1e-6, rule=rule)
    ratio = first_step(model, groups, 1e-6, make, loss_of, batch_of)
    low, high = (0.8, 1.25) if optimizer == "adam" else (0.5, 2.0)
    assert low <= ratio <= high, ratio


def objective_of(net: nn.Module) -> Tensor:
    """On a batch that no step is measured on."""
    return loss_of(net, batch_of(1000))


@pytest.mark.parametrize("primary", [Gelu, Images])
@pytest.mark.parametrize("setting", [*BILINEAR[:3], "low rank, deep", "channel scale", "per layer"])
def test_with_an_objective_the_first_step_of_sgd_is_right_behind_heads_that_multiply(
    setting: str, primary: Callable[[], nn.Module]
) -> None:
    model = model_of(setting, primary, seed=1)
    groups = hl.parameter_groups(model, 1e-6, rule="sgd", objective=objective_of)
    ratio = first_step(model, groups, 1e-6, torch.optim.SGD, loss_of, batch_of)
    assert 0.8 <= ratio <= 1.25, ratio


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("init", ["fan_out", "hyperfan_in"])
@pytest.mark.parametrize("head", [hl.Dense(), hl.LowRank(3)], ids=["dense", "low rank"])
def test_a_head_that_starts_large_does_not_overshoot_behind_an_encoder(
    head: hl.Head, init: str, optimizer: str
) -> None:
    """Judged by the features alone, the first step went 1.2 to 11 times as far."""
    rule, make = STEPPERS[optimizer]
    torch.manual_seed(0)
    inputs = {"z": hl.Vector(9)}
    options: Any = {"encoding": Encoder(), "init": init, "head": head, "residual": False}
    model = hl.hypernetize(Gelu().double(), inputs, **options)
    groups = hl.parameter_groups(model, 1e-6, rule=rule, objective=objective_of)
    ratio = first_step(model, groups, 1e-6, make, loss_of, batch_of)
    assert 0.8 <= ratio <= 1.25, ratio


@pytest.mark.parametrize("rule", ["adam", "sgd"])
@pytest.mark.parametrize(
    "setting", ["low rank", "low rank, deep", "chunked", "gated", "separate", "factors"]
)
def test_rates_agree_with_slow_differences(setting: str, rule: Any) -> None:
    """theta0 and all tensors of the head together move a predicted weight as far as a plain step:
    each trial by itself, over all entries.
    """
    model = model_of(setting)
    net, head, theta0 = model.hypernet, model.hypernet.head, model.theta0
    factors = {
        g["name"].removeprefix("head."): g["lr"] for g in hl.parameter_groups(model, 1.0, rule=rule)
    }
    named = dict(head.named_parameters())
    parameters = [*named.values()]
    by = [factors["head" if len(named) == 1 else name] for name in named]
    features = net.features(**net.draws(256)).detach()
    chosen = features.norm(dim=-1).argsort()[32::64]
    total = 0.0
    for seed, f in enumerate(features[chosen]):
        gradient = random_gradients(rule, theta0, seed)
        predicted = head.change(theta0, f)
        found = torch.autograd.grad(
            [*predicted.values()], parameters, [gradient[n] for n in predicted], allow_unused=True
        )
        first = torch.sign if rule == "adam" else torch.clone
        pairs = [
            (p, -b * first(g))
            for p, g, b in zip(parameters, found, by, strict=True)
            if g is not None
        ]

        def moved(by: float, pairs: Any = pairs, f: Tensor = f) -> dict[str, Tensor]:
            with torch.no_grad():
                for p, step in pairs:
                    p.add_(step, alpha=by)
                after = head.change(theta0, f)
                for p, step in pairs:
                    p.sub_(step, alpha=by)
            return after

        ahead, behind = moved(1e-6), moved(-1e-6)
        plain = {name: -first(gradient[name]) for name in predicted}
        far = sum(
            float((plain[n] / 2 + (ahead[n] - behind[n]) / 2e-6).abs().sum()) for n in predicted
        )
        total += far / float(sum(t.abs().sum() for t in plain.values()))
    assert total / 4 == pytest.approx(1.0, rel=0.02)


@given(
    hidden=st.lists(st.integers(4, 200), max_size=4),
    activation=st.sampled_from(["leaky_relu", "tanh", "gelu"]),
    inputs=st.integers(1, 24),
    skip=st.booleans(),
    optimizer=st.sampled_from(["adam", "sgd"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_the_first_step_is_right_behind_any_trunk(
    hidden: list[int], activation: str, inputs: int, skip: bool, optimizer: str, seed: int
) -> None:
    rule, make = STEPPERS[optimizer]
    torch.manual_seed(seed)
    model = hl.hypernetize(
        Gelu().double(), {"z": hl.Normal(inputs)}, hidden=hidden, activation=activation, skip=skip
    )
    groups = hl.parameter_groups(model, 1e-6, rule=rule)
    ratio = first_step(model, groups, 1e-6, make, loss_of, batch_of)
    assert 0.7 <= ratio <= 1.4, ratio
    assert all(group["lr"] <= 0.5e-6 for group in groups if group["name"].startswith("trunk"))


@pytest.mark.parametrize("setting", ["dense, wide", "low rank", "chunked", "mixed", "separate"])
def test_the_first_step_in_a_convolutional_network(setting: str) -> None:
    rule, make = STEPPERS["adam"]
    model = model_of(setting, Images, seed=3)
    groups = hl.parameter_groups(model, 1e-6, rule=rule)
    assert 0.8 <= first_step(model, groups, 1e-6, make, loss_of, batch_of, 4) <= 1.25


@pytest.mark.parametrize("optimizer", ["lion", "lion, by its class", "adafactor", "muon"])
@pytest.mark.parametrize("setting", ["dense, narrow", "dense, deep", "low rank"])
def test_other_optimizers_follow_one_of_the_rules_or_are_tried(
    setting: str, optimizer: str
) -> None:
    rule, make = STEPPERS[optimizer]
    model = model_of(setting)
    groups = hl.parameter_groups(model, 1e-5, rule=rule, weight_decay=0.0)
    low, high = (0.65, 1.5) if optimizer == "muon" else (0.8, 1.25)
    assert low <= first_step(model, groups, 1e-5, make, loss_of, batch_of, 4) <= high


@pytest.mark.parametrize("setting", ["dense, narrow", "dense, deep", "low rank", "chunked"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_thirty_steps_go_as_far_as_those_of_the_plain_network(
    setting: str, optimizer: str, frozen: bool
) -> None:
    model = model_of(setting, frozen=frozen)
    lr = 1e-3 if optimizer == "adam" else 1e-2
    groups = hl.parameter_groups(model, lr, rule=optimizer)
    make = {
        "adam": torch.optim.Adam,
        "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
    }[optimizer]
    others = [model.sample(generator=torch.Generator().manual_seed(i)) for i in range(29)]
    batches = [batch_of(i) for i in range(30)]
    ratios = [
        distances(model, groups, lr, make, loss_of, batches, [first, *others])
        for first in spread_draws(model, 3)
    ]
    low = 0.5 if optimizer == "sgd" and setting.startswith(BILINEAR) else 0.7
    assert low <= sum(ratios) / len(ratios) <= 1.5, ratios


@pytest.mark.parametrize(
    "setting", ["dense, narrow", "dense, deep", "dense, wide", "low rank", "chunked", "factors"]
)
def test_it_trains_at_the_highest_rate_at_which_the_plain_network_trains(setting: str) -> None:
    """The plain network fits at 0.05; with one rate of 0.05 for all, hypernetworks diverge."""

    def trained(model: nn.Module, groups: Any) -> float:
        optimizer = torch.optim.Adam(groups)
        for i in range(60):
            gamma = model.sample(generator=None) if isinstance(model, hl.HyperModel) else {}
            x, y = batch_of(i)
            loss = F.mse_loss(model(x, **gamma), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    torch.manual_seed(0)
    plain = Gelu().double()
    least = trained(plain, [{"params": [*plain.parameters()], "lr": 0.05}])
    assert least < 0.8 * float(batch_of(59)[1].var())
    model = model_of(setting)
    assert trained(model, hl.parameter_groups(model, 0.05)) < 1.25 * least


@pytest.mark.parametrize(("rule", "lr"), [("adam", 1e-3), ("adam", 3e-2), ("sgd", 0.1)])
def test_a_network_learns_digits_at_the_rates_of_the_plain_one(rule: str, lr: float) -> None:
    split = load_images("digits", Request(None))
    test = split.test.unit()

    def accuracy(model: nn.Module, groups: Any) -> float:
        adam = rule == "adam"
        optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(groups) if adam else torch.optim.SGD(groups, momentum=0.9)
        )
        batches = Batches(split.train, 128, 0)
        generator = torch.Generator().manual_seed(0)

        def draw() -> dict[str, Tensor]:
            return model.sample(generator=generator) if isinstance(model, hl.HyperModel) else {}

        for _ in range(150):
            batch = next(batches)
            loss = F.cross_entropy(model(batch.images, **draw()), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            right = [model(test.images, **draw()).argmax(1) == test.labels for _ in range(3)]
        return float(torch.cat(right).float().mean())

    torch.manual_seed(0)
    plain = LeNet(8)
    model = hl.hypernetize(copy.deepcopy(plain), SPACE)
    least = accuracy(plain, [{"params": [*plain.parameters()], "lr": lr}])
    assert least > 0.9
    assert accuracy(model, hl.parameter_groups(model, lr, rule=rule)) > least - 0.02


# --- parts ------------------------------------------------------------------------------


class Measured(hl.Dense):
    """A dense head that is measured by trial steps, as a head of one's own is."""


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("kept", ["dense", "factored"])
def test_trial_steps_measure_what_is_exact_for_a_dense_head(
    kept: str, optimizer: str, frozen: bool
) -> None:
    found = []
    for head in (hl.Dense(), Measured()):
        torch.manual_seed(0)
        model = hl.hypernetize(Gelu(), SPACE, hidden=(64, 16), head=head)
        model.primary.requires_grad_(not frozen)
        kept_by = []
        if kept == "factored":  # its gradient is handed over as factors while one of these lives
            kept_by.append(hl.optim.SGD(model.parameters(), lr=1e-3))
        found.append(rates_of(model, 1.0, rule=optimizer)["head"])
    assert found[1] == pytest.approx(found[0], rel=0.04)


class Tried(hl.LowRank):
    """A low-rank head that is measured as a head of one's own is."""


class TriedScale(hl.ChannelScale):
    """The same for scales of channels."""


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "pair",
    [(hl.LowRank(3), Tried(3)), (hl.ChannelScale(), TriedScale())],
    ids=["low rank", "channel scale"],
)
def test_what_rows_give_stands_for_them(
    pair: tuple[hl.Head, hl.Head], dtype: torch.dtype, optimizer: str
) -> None:
    found = []
    for head in pair:
        torch.manual_seed(0)
        model = hl.hypernetize(Gelu().to(dtype), SPACE, hidden=(64, 16), head=head)
        found.append(rates_of(model, 1.0, rule=optimizer))
    assert found[0] == pytest.approx(found[1], rel=0.02)


EXCERPTS: dict[str, Any] = {
    "chunked": hl.Chunked(700),
    "per layer": hl.PerLayer(embed=8, width=16),
    "of two kinds": {"0.*": hl.PerLayer(embed=8, width=16), "*": hl.Chunked(500)},
}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("head", EXCERPTS)
def test_an_excerpt_of_a_large_head_gives_the_rates_of_all_of_it(
    head: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = hl.hypernetize(Gelu(60), SPACE, head=EXCERPTS[head])
    found = []
    for rows in (10**9, 400):
        monkeypatch.setattr("hyperlight.groups._ROWS", rows)
        found.append(rates_of(model, 1.0, rule=optimizer))
    assert found[0] != found[1]
    for name, rate in found[0].items():
        # Of what the last layer multiplies, it depends on the draw of the gradient.
        drawn = name.startswith("head") and not ("outputs" in name or name.endswith("weight"))
        assert found[1][name] == pytest.approx(rate, rel=0.5 if drawn else 0.1), name


class Rows(TorchFunctionMode):
    """Counts the rows of matrices that linear layers apply."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is F.linear:
            self.count += len(args[1])
        return function(*args, **(kwargs or {}))


# A call of the whole head takes 4096 rows, and 80,000.
@pytest.mark.parametrize(
    ("head", "most"),
    [
        (hl.Chunked(), 25_000),
        (hl.PerLayer(), 60_000),
        ({"*.bias": hl.Dense(), "*": hl.PerLayer()}, 60_000),
    ],
)
def test_a_large_head_is_applied_in_part(head: Any, most: int) -> None:
    primary = nn.Sequential(nn.Linear(200, 200), nn.Linear(200, 201))
    model = hl.hypernetize(primary, SPACE, head=head)
    with Rows() as applied:
        hl.parameter_groups(model, 1e-3)
    assert most / 3 < applied.count < most


class Sizes(TorchDispatchMode):
    """The number of entries of the largest result."""

    largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and not function.is_view:
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("rule", ["adam", "sgd"])
@pytest.mark.parametrize("head", [hl.LowRank(8), hl.ChannelScale()])
def test_nothing_as_large_as_the_rows_of_a_head_is_made(head: hl.Head, rule: Any) -> None:
    model = hl.hypernetize(nn.Linear(40, 500), SPACE, hidden=(8, 64), head=head)
    with Sizes() as made:
        hl.parameter_groups(model, 1e-3, rule=rule)
    assert made.largest < model.hypernet.head.weight.numel()


def test_an_optimizer_that_is_tried_has_neither_decay_nor_factored_gradients() -> None:
    model = hl.hypernetize(Gelu(), SPACE, hidden=(8, 12))
    expected = rates_of(model, 1.0, rule=Lion)
    kept_by = hl.optim.SGD(model.parameters(), lr=1e-3)
    decaying = functools.partial(Lion, weight_decay=100.0)
    assert rates_of(model, 1.0, rule=decaying) == pytest.approx(expected)
    assert kept_by is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", HEADS)
def test_rates_are_alike_in_every_dtype(head: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = hl.hypernetize(Gelu(), SPACE, hidden=(16, 32), head=HEADS[head])
    expected = rates_of(model, 1.0)
    assert rates_of(model.to(dtype), 1.0) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_without_values_rates_are_estimated(head: str, rule: str) -> None:
    options: Any = {"inputs": SPACE, "hidden": (512, 512), "head": HEADS[head]}
    torch.manual_seed(0)
    model = hl.hypernetize(Gelu(), device="meta", **options)
    found = rates_of(model, 1.0, rule=rule)
    real = rates_of(hl.hypernetize(Gelu(), **options), 1.0, rule=rule)
    assert found.keys() == real.keys()
    assert found["theta0"] == 0.5
    if rule == "adam" and head == "dense":
        for name, rate in real.items():
            assert rate / 3 < found[name] < rate * 3, name


def test_a_layer_that_moves_the_features_far_has_a_small_rate() -> None:
    """Its inputs and outputs are many: a step of Adam changes every weight alike."""
    model = hl.hypernetize(Gelu(), SPACE, hidden=(8, 8, 512, 512))
    rates = rates_of(model, 1.0)
    assert rates["trunk.layers.3"] < rates["trunk.layers.2"] < rates["trunk.layers.1"]


def _parts_of_the_rate(model: hl.HyperModel, lr: float, **options: Any) -> dict[str, float]:
    return {name: rate / lr for name, rate in rates_of(model, lr, **options).items()}


def test_the_trunk_is_up_to_three_times_as_fast_while_its_features_change_slowly() -> None:
    model = hl.hypernetize(Gelu(), SPACE)
    found = [_parts_of_the_rate(model, 10.0**k) for k in (-7.0, -5.0, -2.0, -1.5, -1.0, 0.0, 1.0)]
    for name in found[0]:
        parts = [rates[name] for rates in found]
        if not name.startswith("trunk"):
            assert parts == pytest.approx([parts[0]] * len(parts))
            continue
        close = functools.partial(pytest.approx, rel=1e-2)
        assert parts[0] == close(parts[1]) == close(3.0 * parts[-1])
        assert parts[-1] == close(parts[-2])
        assert all(before >= after * 0.99 for before, after in itertools.pairwise(parts))
        assert 1.5 * parts[-1] < parts[3] < 2.5 * parts[-1]


def test_a_step_of_all_layers_changes_the_features_by_less_than_a_third() -> None:
    """Unless a step changes the weights of the plain network that much."""
    gammas = {"g": torch.linspace(0.0, 1.0, 50)}
    for lr in (1e-3, 1e-2, 3e-2):
        moved = []
        for seed in range(10):
            torch.manual_seed(seed)
            model = hl.hypernetize(Gelu().double(), SPACE)
            groups = hl.parameter_groups(model, lr)
            before = model.hypernet.features(**gammas).detach()
            batch = batch_of(seed)
            loss_of(model.bind(g=0.4), batch).backward()
            torch.optim.Adam([g for g in groups if g["name"].startswith("trunk")]).step()
            after = model.hypernet.features(**gammas).detach()
            moved.append(float((after - before).norm() / before.norm()))
        mean = sum(moved) / len(moved)
        # Random gradients move features as far as those of any loss; not all in one direction.
        assert mean < 0.35
        assert mean > 0.1 if lr > 1e-3 else mean > 0.01


@pytest.mark.parametrize("options", [{"rule": "sgd"}, {"rule": torch.optim.Adafactor}])
def test_the_trunk_is_no_faster_where_the_size_of_steps_is_not_known(
    options: dict[str, Any],
) -> None:
    model = hl.hypernetize(Gelu(), SPACE)
    slow, fast = (_parts_of_the_rate(model, lr, **options) for lr in (1e-6, 1.0))
    assert slow == pytest.approx(fast)


def test_an_encoder_is_never_faster() -> None:
    model = model_of("dense, encoder")
    slow, fast = (_parts_of_the_rate(model, lr)["trunk.encoding"] for lr in (1e-6, 1.0))
    assert slow == pytest.approx(fast)


def test_an_encoder_has_one_rate_and_is_not_slowed_as_the_trunk_is() -> None:
    model = model_of("dense, encoder")
    groups = hl.parameter_groups(model, 1.0)
    assert [g["name"] for g in groups[1:-1]] == [
        "trunk.encoding",
        "trunk.layers.0",
        "trunk.layers.1",
        "trunk.projection",
    ]
    assert len(groups[1]["params"]) == 6
    assert groups[1]["lr"] > 0.02


class Recurrent(hl.Encoding):
    """Keeps its weights in a list of its own as well."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(1, 8, batch_first=True)

    def output_size(self, inputs: int) -> int:
        return 8

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1], 1)
        return self.rnn(rows)[0][:, -1].reshape(*x.shape[:-1], 8)


@pytest.mark.parametrize("kind", ["recurrent", "nested", "frozen encoder", "zero, sgd", "linear"])
def test_odd_hypernetworks_get_sane_rates(kind: str) -> None:
    torch.manual_seed(0)
    rule = "adam"
    if kind == "recurrent":
        model = hl.hypernetize(mlp(), {"z": hl.Vector(5)}, encoding=Recurrent())
    elif kind == "nested":
        inner = hl.hypernetize(mlp(), SPACE, hidden=(6,))
        model = hl.hypernetize(inner.hypernet, {"k": hl.Categorical(3)}, hidden=(6,))
    elif kind == "frozen encoder":
        model = hl.hypernetize(mlp(), {"z": hl.Vector(9)}, encoding=Encoder())
        model.hypernet.encoding.requires_grad_(False)
    elif kind == "zero, sgd":
        rule, model = "sgd", hl.hypernetize(Gelu(), SPACE, init="zero", hidden=(64, 8))
    else:
        model = hl.hypernetize(mlp(), SPACE)
        model.hypernet.trunk = nn.Linear(2, 128)
    rates = rates_of(model, 1.0, rule=rule)
    assert all(1e-4 < rate < 20.0 for rate in rates.values()), rates
    if kind == "recurrent":
        assert rates["trunk.encoding"] < 0.5  # its steps were seen
    if kind == "zero, sgd":  # W is zero, and nothing pulls at the trunk yet
        assert rates["trunk.layers.0"] < 0.1


class Counting(Separate):
    """Counts its predictions."""

    calls = 0

    def predict(self, features: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        return super().predict(features)


def test_a_head_of_many_tensors_takes_one_trial_for_each() -> None:
    primary = nn.Sequential(*[nn.Linear(4, 4) for _ in range(50)])
    model = hl.hypernetize(primary, SPACE, head=Counting())
    groups = hl.parameter_groups(model, 1.0)
    head = [group for group in groups if group["name"].startswith("head")]
    assert len(head) == 102
    assert model.hypernet.head.calls < 102 + 15
    # those of one kind have rates that are alike
    rates = torch.tensor([g["lr"] for g in head if g["name"].startswith("head.out")])
    assert rates.max() / rates.min() < 3.0


# --- what is refused --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lr": 0.0}, "lr was 0.0; expected a positive rate"),
        ({"lr": 1e-3, "rule": "adan"}, "rule was 'adan'; .* Did you mean 'adam'"),
        ({"lr": 1e-3, "rule": 3}, "rule was 3; .* or a class of optimizers such as torch"),
        (
            {"lr": 1e-3, "rule": torch.optim.Muon},
            r"rule=Muon cannot step a parameter of shape \(5,\): .* expected a class of "
            "optimizers, or a function that makes one",
        ),
        ({"lr": 1e-3, "weight_decay": {"heads": 0.1}}, "group 'heads'; .* Did you mean 'head'"),
        ({"lr": 1e-3, "weight_decay": -1.0}, "weight_decay of 'theta0' was -1.0"),
    ],
)
def test_settings_of_groups_that_make_no_sense_are_refused(
    arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(hl.ConfigurationError, match=words):
        hl.parameter_groups(hl.hypernetize(mlp(), SPACE), **arguments)


@pytest.mark.parametrize(
    ("objective", "error", "words"),
    [
        (lambda net: net(torch.ones(1, 3)), hl.ObjectiveError, "The objective returned a tensor"),
        (
            lambda net: torch.zeros((), requires_grad=True) * 1.0,
            hl.ObjectiveError,
            "The objective does not depend on the weights",
        ),
        (
            lambda net: 0.0 * net(torch.ones(1, 3)).sum(),
            hl.ConfigurationError,
            "objective's gradients of .* have size 0 .* expected a positive number",
        ),
    ],
)
def test_objectives_that_cannot_be_measured_are_refused(
    objective: Callable[[nn.Module], Tensor], error: type[Exception], words: str
) -> None:
    model = hl.hypernetize(mlp(), SPACE, head=hl.LowRank(1))
    with pytest.raises(error, match=words):
        hl.parameter_groups(model, 1e-3, objective=objective)


@pytest.mark.parametrize("broken", [0.0, float("nan")])
def test_features_without_size_are_refused(broken: float) -> None:
    model = hl.hypernetize(mlp(), SPACE)
    with torch.no_grad():
        for parameter in model.hypernet.projection.parameters():
            parameter.fill_(broken)
    with pytest.raises(hl.ConfigurationError, match="size (0|nan) on average .* positive number"):
        hl.parameter_groups(model, 1e-3)


@pytest.mark.parametrize("head", HEADS)
def test_weights_that_are_not_finite_are_refused(head: str) -> None:
    model = hl.hypernetize(mlp(), SPACE, head=HEADS[head])
    with torch.no_grad():
        next(model.hypernet.head.parameters()).fill_(float("inf"))
    with pytest.raises(hl.ConfigurationError, match="size (inf|nan) on average"):
        hl.parameter_groups(model, 1e-3)
