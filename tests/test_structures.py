"""Objects as arguments and as outputs, with one set of weights per sample."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, distributions, nn

import hyperlight as hl

B, T, C = 3, 4, 2
quiet = pytest.mark.filterwarnings("ignore::UserWarning")


@dataclass
class Pair:
    mean: Tensor
    label: str
    nested: dict[str, Tensor]


@dataclass(frozen=True)
class Frozen:
    mean: Tensor
    square: Tensor


@dataclass
class Rich:
    """A field that ``__init__`` does not take, and one that is computed."""

    mean: Tensor

    def __post_init__(self) -> None:
        self.double = 2 * self.mean


class Named(NamedTuple):
    mean: Tensor
    label: str


Untyped = namedtuple("Untyped", ["mean", "square"])


class Opaque:
    """No container that anyone has heard of."""

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean


class Mapping(UserDict):
    """As ``transformers.BatchEncoding`` is one."""


def _normal(y: Tensor) -> distributions.Distribution:
    return distributions.Normal(y, y.square() + 0.1)


def _independent(y: Tensor) -> distributions.Distribution:
    return distributions.Independent(_normal(y), 1)


def _mixture(y: Tensor) -> distributions.Distribution:
    weights = distributions.Categorical(logits=y)
    return distributions.MixtureSameFamily(weights, _normal(y))


def _transformed(y: Tensor) -> distributions.Distribution:
    return distributions.TransformedDistribution(_normal(y), distributions.ExpTransform())


def _multivariate(y: Tensor) -> distributions.Distribution:
    return distributions.MultivariateNormal(y, torch.diag_embed(y.square() + 0.1))


def _densities(d: distributions.Distribution) -> list[Tensor]:
    """What a distribution is good for, of shape ``batch_shape`` each."""
    value = torch.full((*d.batch_shape, *d.event_shape), 0.5, dtype=torch.float64)
    found = [d.log_prob(value)]
    return found if isinstance(d, distributions.TransformedDistribution) else [*found, d.mean]


# Where every sample runs by itself, the tensors of these are found and put together.
KNOWN = {
    *("tensor", "tuple", "list", "dict", "ordered dict", "dataclass", "frozen dataclass"),
    *("in a list", "NamedTuple", "namedtuple", "max"),
}
# name -> (what a network returns, given (B, T, C); its tensors, with the batch in front)
FORMS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], list[Tensor]]]] = {
    "tensor": (lambda y: y, lambda o: [o]),
    "tuple": (lambda y: (y, None, 3, (y.sum(1), "word")), lambda o: [o[0], o[3][0]]),
    "list": (lambda y: [y, [y.mean(1)]], lambda o: [o[0], o[1][0]]),
    "dict": (lambda y: {"y": y, 3: y.mean(-1)}, lambda o: [o["y"], o[3]]),
    "ordered dict": (lambda y: OrderedDict(y=y, n=1), lambda o: [o["y"]]),
    "dataclass": (
        lambda y: Pair(y, "word", {"square": y.square()}),
        lambda o: [o.mean, o.nested["square"]],
    ),
    "frozen dataclass": (lambda y: Frozen(y, y.square()), lambda o: [o.mean, o.square]),
    "dataclass that computes": (Rich, lambda o: [o.mean, o.double]),
    "in a list": (
        lambda y: [Frozen(y, y), {"d": Named(y, "b")}],
        lambda o: [o[0].mean, o[1]["d"].mean],
    ),
    "NamedTuple": (lambda y: Named(y, "word"), lambda o: [o.mean]),
    "namedtuple": (lambda y: Untyped(y, y.square()), lambda o: [o.mean, o.square]),
    "UserDict": (lambda y: Mapping(mean=y), lambda o: [o["mean"]]),
    "Normal": (_normal, _densities),
    "Independent": (_independent, _densities),
    "Categorical": (
        lambda y: distributions.Categorical(logits=y),
        lambda o: [o.logits, o.entropy()],
    ),
    "MixtureSameFamily": (_mixture, _densities),
    "TransformedDistribution": (_transformed, _densities),
    "MultivariateNormal": (_multivariate, _densities),
    "max": (lambda y: y.max(1), lambda o: [o.values, o.indices]),
    "object": (Opaque, lambda o: [o.mean]),
}


class Plain(nn.Module):
    """Runs on the true batch."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.form = nn.Linear(C, C), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.linear(x))


class Turned(Plain):
    """The layer sees the samples in another order, which vmap follows."""

    def forward(self, x: Tensor) -> Any:
        return self.form(self.linear(x.flip(0)).flip(0))


class Branching(Plain):
    """Nothing but a loop follows this."""

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x.flip(0)).flip(0)
        return self.form(y if float(y[0].sum()) > 0 else -2 * y)


NETWORKS = {"batch": Plain, "vmap": Turned, "loop": Branching}


def _model(primary: nn.Module) -> hl.HyperModel:
    return hl.hypernetize(
        primary.double(), {"g": hl.Uniform(0.0, 1.0)}, hidden=(4,), init=hl.Relative(0.5)
    )


def _tried(call: Callable[[], Any]) -> tuple[Any, str]:
    """What a call returns, or what it says in refusing."""
    try:
        return call(), ""
    except hl.HyperLightError as error:
        return None, str(error)


def _kind(output: Any) -> Any:
    """The classes of an output, and all that is no tensor."""
    if isinstance(output, (list, tuple)):
        return type(output), [_kind(part) for part in output]
    if isinstance(output, (dict, UserDict)):
        return type(output), {key: _kind(value) for key, value in output.items()}
    return type(output) if not isinstance(output, (str, int)) else output


@quiet
@pytest.mark.parametrize("way", NETWORKS)
@pytest.mark.parametrize("form", FORMS)
def test_what_a_network_returns_has_the_batch_in_place(form: str, way: str) -> None:
    make, tensors = FORMS[form]
    model = _model(NETWORKS[way](make))
    x, g = torch.randn(B, T, C, dtype=torch.float64), torch.rand(B, dtype=torch.float64)
    for _ in range(2):
        output, refusal = _tried(lambda: model(x, g=g))
        if refusal:
            assert way != "batch"  # there nothing need be known of what is returned
            assert form not in KNOWN
            assert "Return the tensors, in a tuple, a dict or a dataclass" in refusal
            return
        assert way != "batch" or model.last_run.way == "batch"
        ones = [model(x[i : i + 1], g=g[i]) for i in range(B)]
        assert _kind(output) == _kind(ones[0])
        columns = zip(*(tensors(one) for one in ones), strict=True)
        for found, rows in zip(tensors(output), columns, strict=True):
            torch.testing.assert_close(found, torch.cat(rows))
            assert not torch._C._functorch.is_functorch_wrapped_tensor(found)


@pytest.mark.parametrize("form", ["Normal", "Categorical", "dataclass", "object"])
def test_gradients_flow_through_what_is_returned(form: str) -> None:
    make, tensors = FORMS[form]
    model = _model(Plain(make))
    x, g = torch.randn(B, T, C, dtype=torch.float64), torch.rand(B, dtype=torch.float64)
    loss = sum(t.square().sum() for t in tensors(model(x, g=g)))
    ones = [tensors(model(x[i : i + 1], g=g[i])) for i in range(B)]
    expected = sum(t.square().sum() for one in ones for t in one)
    found, wanted = (torch.autograd.grad(v, list(model.parameters())) for v in (loss, expected))
    torch.testing.assert_close(found, wanted)


# --- batches that are objects --------------------------------------------------------------


@dataclass
class Batch:
    x: Tensor
    name: str = "word"


@dataclass(frozen=True)
class FrozenBatch:
    x: Tensor


class OpaqueBatch:
    def __init__(self, x: Tensor) -> None:
        self.x = x


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x: Tensor) -> None:
        self.x = x


class NamedBatch(NamedTuple):
    x: Tensor


BATCHES: dict[str, Callable[[Tensor], Any]] = {
    "dict": lambda x: {"x": x},
    "UserDict": lambda x: Mapping(x=x),
    "NamedTuple": NamedBatch,
    "dataclass": Batch,
    "frozen dataclass": FrozenBatch,
    "dataclass in a list": lambda x: [Batch(x)],
    "object": OpaqueBatch,
    "object with slots": Slotted,
}


def _x(batch: Any) -> Tensor:
    batch = batch[0] if isinstance(batch, list) else batch
    return batch["x"] if isinstance(batch, (dict, UserDict)) else batch.x


def _reading(network: type[Plain]) -> type[Plain]:
    class Reading(network):
        def forward(self, batch: Any) -> Any:
            return super().forward(_x(batch))

    return Reading


@quiet
@pytest.mark.parametrize("way", NETWORKS)
@pytest.mark.parametrize("kind", BATCHES)
def test_a_batch_may_be_an_object(kind: str, way: str) -> None:
    model = _model(_reading(NETWORKS[way])(lambda y: y))
    x, g = torch.randn(B, T, C, dtype=torch.float64), torch.rand(B, dtype=torch.float64)
    for _ in range(2):
        batch = BATCHES[kind](x)
        output, refusal = _tried(lambda batch=batch: model(batch, g=g))
        if refusal:
            assert way != "batch"  # there it need not be split
            assert kind not in ("dict", "NamedTuple")
            assert "an object that cannot be split into samples" in refusal
            return
        ones = [model(BATCHES[kind](x[i : i + 1]), g=g[i]) for i in range(B)]
        torch.testing.assert_close(output, torch.cat(ones))
        assert torch.equal(_x(batch), x)  # the user's own is what it was


@quiet
@pytest.mark.parametrize("way", NETWORKS)
@pytest.mark.parametrize("kind", ["UserDict", "dataclass", "dict"])
def test_a_batch_that_is_an_object_of_another_size_is_refused(kind: str, way: str) -> None:
    model = _model(_reading(NETWORKS[way])(lambda y: y))
    x = torch.randn(B + 1, T, C, dtype=torch.float64)
    with pytest.raises(hl.HyperLightError):
        model(BATCHES[kind](x), g=torch.rand(B, dtype=torch.float64))


def test_a_batch_encoding_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, C)

        def forward(self, batch: Any) -> Tensor:
            y = self.embedding(batch["input_ids"]) * batch["attention_mask"][..., None]
            return y.sum(1) / batch["attention_mask"].sum(1, keepdim=True)

    model, ids, mask = _model(Mean()), torch.randint(9, (B, T)), torch.ones(B, T)
    mask[1, 2:] = 0
    g = torch.rand(B, dtype=torch.float64)

    def encoding(rows: slice) -> Any:
        data = {"input_ids": ids[rows], "attention_mask": mask[rows]}
        return transformers.BatchEncoding(data)

    output = model(encoding(slice(None)), g=g)
    assert output.shape == (B, C)
    ones = [model(encoding(slice(i, i + 1)), g=g[i]) for i in range(B)]
    torch.testing.assert_close(output, torch.cat(ones))
    unpacked = model(**{"batch": encoding(slice(None))}, g=g)
    torch.testing.assert_close(unpacked, output)
