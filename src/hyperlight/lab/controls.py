"""What a hypernetwork is compared with: networks whose weights are trained, not predicted.

Each has the part of the interface of a :class:`~hyperlight.HyperModel` that tasks use: ``sample``,
``forward(x, **gamma)``, ``bind(**gamma)`` and ``primary``.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from .. import Categorical, Encoded, HyperNet, Input
from ..errors import listed
from ..targets import Targets, select
from .errors import LabError

__all__ = [
    "ByHand",
    "Channel",
    "Control",
    "Dropout",
    "Ensemble",
    "Film",
    "Fixed",
    "Separate",
    "Shared",
    "input_channels",
]

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_LAYERS = (*_CONVOLUTIONS, nn.Linear)


class Control(nn.Module, ABC):
    """A network with trained weights, in the place of a :class:`~hyperlight.HyperModel`.

    Args:
        primary: the network.
    """

    def __init__(self, primary: nn.Module) -> None:
        super().__init__()
        self.primary = primary

    @property
    def saved(self) -> nn.Module:
        """The module whose weights are the result of the training."""
        return self.primary

    @abstractmethod
    def sample(
        self, batch_shape: Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Draw gamma: ``{name: batch_shape + event_shape}``."""

    @abstractmethod
    def bind(self, **gamma: Any) -> nn.Module:
        """A network of everything but gamma."""

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the primary; gamma is among the keywords, everything else is the primary's."""


class Fixed(Control):
    """A plain network for one gamma, on which its weights do not depend.

    Args:
        primary: the network.
        inputs: the one gamma that it is trained for, by name; empty if the task of the primary
            does not depend on gamma.

    >>> from hyperlight.lab.controls import Fixed
    >>> model = Fixed(nn.Linear(2, 1), {"gamma": torch.tensor(0.3)})
    >>> gamma = model.sample()
    >>> model(torch.zeros(4, 2), **gamma).shape, model.bind(**gamma) is model.primary
    (torch.Size([4, 1]), True)
    """

    def __init__(self, primary: nn.Module, inputs: dict[str, Tensor]) -> None:
        super().__init__(primary)
        self.names = tuple(inputs)
        for name, value in inputs.items():
            self.register_buffer(f"fixed_{name}", value, persistent=False)

    def sample(
        self, batch_shape: Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The one gamma, without drawing."""
        values = {name: self.get_buffer(f"fixed_{name}") for name in self.names}
        return {name: v.expand((*batch_shape, *v.shape)) for name, v in values.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the primary on everything but gamma."""
        return self.primary(*args, **{k: v for k, v in kwargs.items() if k not in self.names})

    def bind(self, **gamma: Any) -> nn.Module:
        """The primary, for any gamma."""
        return self.primary


class Ensemble(Control):
    """Plain networks for the same task, trained side by side (Lakshminarayanan et al. 2017).

    They differ in where they start. None has anything to do with another.

    Args:
        networks: the networks.

    Raises:
        LabError: the size of a batch is not a multiple of their number.

    Shape:
        The first dimension of the arguments, and of the results, is divided evenly among the
        networks, in their order.

    >>> from hyperlight.lab.controls import Ensemble
    >>> model = Ensemble(nn.Linear(2, 1) for _ in range(2))
    >>> model(torch.zeros(4, 2)).shape, model.bind(gamma=1) is model.primary[1]
    (torch.Size([4, 1]), True)
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__(nn.ModuleList(networks))

    @property
    def networks(self) -> list[nn.Module]:
        """The networks, in their order."""
        return list(self.primary.children())

    def sample(
        self, batch_shape: Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Nothing: a batch is divided by its order."""
        return {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run every network on its part of the arguments."""
        networks = self.networks
        if len(args[0]) % len(networks):
            raise LabError(
                f"A batch had {len(args[0])} entries for {len(networks)} networks; expected a "
                f"multiple of {len(networks)}, so that each has an equal part of it."
            )
        parts = zip(*(value.chunk(len(networks)) for value in args), strict=True)
        results = [net(*part, **kwargs) for net, part in zip(networks, parts, strict=True)]
        if isinstance(results[0], Tensor):
            return torch.cat(results)
        return tuple(torch.cat(each) for each in zip(*results, strict=True))

    def bind(self, **gamma: Any) -> nn.Module:
        """The network with the number ``gamma``."""
        return self.networks[int(gamma["gamma"])]


class Separate(Ensemble):
    """Plain networks for single gammas, one for each, which are trained side by side.

    All start as copies of one network.

    Args:
        primary: the network to copy.
        inputs: the gammas, one for each network: ``(n, ...)``, by the name of the input.

    >>> from hyperlight.lab.controls import Separate
    >>> model = Separate(nn.Linear(2, 1), {"gamma": torch.tensor([0.3, 0.5])})
    >>> model(torch.zeros(4, 2), **model.sample((4,))).shape
    torch.Size([4, 1])
    >>> model.bind(gamma=0.5) is model.primary[1]
    True
    """

    def __init__(self, primary: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        ((name, gammas),) = inputs.items()
        super().__init__(copy.deepcopy(primary) for _ in gammas)
        self.name = name
        self.gammas: Tensor
        self.register_buffer("gammas", gammas, persistent=False)

    def sample(
        self, batch_shape: Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The gammas of the networks, each as often, without drawing.

        Raises:
            LabError: their number does not divide that of the gammas of a batch.
        """
        (wanted,), count = batch_shape or (1,), len(self.gammas)
        if wanted % count:
            raise LabError(
                f"A batch was to have {wanted} gammas for plain networks of {count}; expected a "
                f"multiple of {count}, so that each has an equal part of it."
            )
        return {self.name: self.gammas.repeat_interleave(wanted // count, dim=0)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run every network on its part of the arguments."""
        kwargs.pop(self.name, None)
        return super().forward(*args, **kwargs)

    def bind(self, **gamma: Any) -> nn.Module:
        """The network of the nearest gamma."""
        away = (self.gammas - gamma[self.name]).abs().reshape(len(self.gammas), -1)
        index = int(away.sum(dim=1).argmin())
        return self.networks[index]


class Dropout(Control):
    """A plain network in which features are dropped, in testing as well (Gal, Ghahramani 2016).

    They are what its linear layers read. Each is set to zero with a probability; the others are
    scaled to keep the mean. The input ``gamma`` is the seed of the draws. In training every entry
    of a batch has draws of its own, and :meth:`bind` gives the network of one draw for all.

    Args:
        primary: the network.
        rate: the probability, from 0 to 1.

    Raises:
        LabError: the primary has no linear layers.

    >>> from hyperlight.lab.controls import Dropout
    >>> model, x = Dropout(nn.Linear(8, 1), 0.5), torch.ones(4, 8)
    >>> model(x, gamma=0).unique().numel() > 1, model.bind(gamma=0)(x).unique().numel()
    (True, 1)
    """

    def __init__(self, primary: nn.Module, rate: float) -> None:
        super().__init__(primary)
        self.rate = rate
        if not any(isinstance(layer, nn.Linear) for layer in primary.modules()):
            raise LabError(
                f"{type(primary).__name__} has no linear layers; expected one or more, because "
                "dropout is in front of them."
            )

    def sample(
        self, batch_shape: Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Draw the seed of one batch."""
        on = None if generator is None else generator.device
        return {"gamma": torch.randint(2**62, (), generator=generator, device=on)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        gamma = kwargs.pop("gamma")
        return self._run(gamma, False, *args, **kwargs)

    def bind(self, **gamma: Any) -> nn.Module:
        """The primary with the features that this seed drops."""
        return _Bound(self.primary, partial(self._run, gamma["gamma"], True))

    def _run(self, gamma: Any, same: bool, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        generator = torch.Generator(x.device).manual_seed(int(gamma))

        def drop(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            features, *rest = inputs
            shape = (1, *features.shape[1:]) if same else features.shape
            draws = torch.rand(shape, generator=generator, device=features.device)
            return (features * (draws >= self.rate) / (1.0 - self.rate), *rest)

        with ExitStack() as hooks:  # for this call alone: another draw may be bound beside it
            for layer in self.primary.modules():
                if isinstance(layer, nn.Linear):
                    hooks.callback(layer.register_forward_pre_hook(drop).remove)
            return self.primary(x, *args, **kwargs)


class _Bound(nn.Module):
    """A network at given gammas.

    Args:
        primary: the network.
        run: how it is run, on what the network is called with.
    """

    def __init__(self, primary: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.primary = primary
        self.run = run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class Shared(Control):
    """One plain network for all gammas, which its loss depends on and its weights do not.

    Args:
        primary: the network.
        inputs: the spaces of gamma, by name.

    >>> from hyperlight.lab.controls import Shared
    >>> model = Shared(nn.Linear(2, 1), {"gamma": hl.Uniform(0.0, 1.0)})
    >>> model.bind(gamma=0.3) is model.primary
    True
    """

    def __init__(self, primary: nn.Module, inputs: Mapping[str, Input]) -> None:
        super().__init__(primary)
        self.inputs = dict(inputs)

    def sample(
        self, batch_shape: Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Draw every entry of gamma: the same values as a hypernetwork draws."""
        like = next(self.primary.parameters())
        on = like.device if generator is None else generator.device
        return {
            name: space.sample(
                tuple(batch_shape), generator=generator, dtype=like.dtype, device=on
            ).to(like.device)
            for name, space in self.inputs.items()
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        gamma = {name: kwargs.pop(name) for name in self.inputs if name in kwargs}
        return self.bind(**gamma)(*args, **kwargs)

    def bind(self, **gamma: Any) -> nn.Module:
        """The primary, for any gamma."""
        return self.primary


class Channel(Shared):
    """A plain network that reads gamma beside its input.

    The numbers of gamma (:attr:`Input.standardize`; for a category, one for each, of which one is
    1 and the others are 0; for an encoded input, what its network gives) become constant channels
    beside an image, or entries beside a vector.

    Args:
        primary: the network, for inputs with :func:`input_channels` more channels or entries. Its
            first layer says which of the two.
        inputs: the spaces of gamma, by name.

    Shape:
        The first argument of the primary is an image ``(B, C, H, W)`` or ``(B, ..., features)``.
        Gamma has the batch shape ``()`` or ``(B,)``.

    >>> from hyperlight.lab.controls import Channel
    >>> model = Channel(nn.Conv2d(1 + 1, 4, 3), {"gamma": hl.Uniform(0.0, 1.0)})
    >>> model(torch.zeros(2, 1, 8, 8), gamma=torch.rand(2)).shape
    torch.Size([2, 4, 6, 6])
    """

    def __init__(self, primary: nn.Module, inputs: Mapping[str, Input]) -> None:
        super().__init__(primary, inputs)
        self.numbers = _Numbers(inputs)
        first = next((m for m in primary.modules() if isinstance(m, _LAYERS)), None)
        self.beside_image = isinstance(first, _CONVOLUTIONS)

    @property
    def saved(self) -> nn.Module:
        return self if any(True for _ in self.numbers.parameters()) else self.primary

    def bind(self, **gamma: Any) -> nn.Module:
        """The primary of everything but gamma."""
        numbers = self.numbers(gamma, next(self.primary.parameters()))
        return _Bound(self.primary, partial(self._run, numbers))

    def _run(self, numbers: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        _check_batch(numbers.shape[:-1], x)
        if self.beside_image:
            beside = numbers[..., None, None].expand(len(x), -1, *x.shape[2:])
            return self.primary(torch.cat([x, beside], dim=1), *args, **kwargs)
        beside = _over_inner(numbers, x).expand(*x.shape[:-1], -1)
        return self.primary(torch.cat([x, beside], dim=-1), *args, **kwargs)


class _Numbers(nn.Module):
    """The numbers of all of gamma, ``batch_shape + (n,)``; networks of encoded inputs are in it.

    Args:
        inputs: the spaces of gamma, by name.
    """

    def __init__(self, inputs: Mapping[str, Input]) -> None:
        super().__init__()
        self.inputs = dict(inputs)
        networks = {k: space.module for k, space in inputs.items() if isinstance(space, Encoded)}
        self.networks = nn.ModuleDict(networks)

    def forward(self, gamma: Mapping[str, Any], like: Tensor) -> Tensor:
        """Read the entries of gamma, in the dtype and on the device of another tensor."""
        _check_names(gamma, self.inputs)
        parts = []
        for name, space in self.inputs.items():
            value = space.tensor(gamma[name], dtype=like.dtype, device=like.device)
            batch_shape = space.batch_shape_of(value)
            if isinstance(space, Encoded):
                rows = value.reshape(-1, *value.shape[len(batch_shape) :]).to(like.dtype)
                value = self.networks[name](rows)
            elif isinstance(space, Categorical):
                value = F.one_hot(value, space.n).to(like.dtype)
            else:
                value = space.standardize(value)
            parts.append(value.reshape(*batch_shape, -1))
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))  # type: ignore[no-untyped-call]
        return torch.cat([part.expand(*shape, -1) for part in parts], dim=-1)


class ByHand(Shared):
    r"""A hypernetwork as one writes it in twenty lines, with nothing of this library.

    .. math:: \theta = \theta_0 + W f(\gamma) + b

    A fully connected network reads the numbers of gamma, as :class:`Channel` does, and its last
    layer gives all weights at once. They are added to those that the primary starts with, and
    :func:`torch.func.functional_call` runs it. Layers start as PyTorch starts them. There is no
    input encoding, no projection, and no rate of its own for any part.

    Args:
        primary: the network. Where several gammas are given, every argument that is a tensor has
            their number of entries.
        inputs: the spaces of gamma, by name.
        hidden: widths of the hidden layers.
        targets: which parameters are predicted, as for :func:`~hyperlight.hypernetize`.

    Shape:
        Gamma has the batch shape ``()``, or ``(B,)`` for the ``B`` entries of a batch.

    >>> from hyperlight.lab.controls import ByHand
    >>> model = ByHand(nn.Linear(2, 1), {"gamma": hl.Uniform(0.0, 1.0)})
    >>> model(torch.zeros(4, 2), gamma=torch.rand(4)).shape
    torch.Size([4, 1])
    """

    def __init__(
        self,
        primary: nn.Module,
        inputs: Mapping[str, Input],
        hidden: Sequence[int] = (64, 128),
        targets: Targets = None,
    ) -> None:
        super().__init__(primary, inputs)
        self.numbers = _Numbers(inputs)
        self.shapes = {target.name: target.shape for target in select(primary, targets)}
        layers: list[nn.Module] = []
        size = input_channels(inputs)
        for width in hidden:
            layers += [nn.Linear(size, width), nn.LeakyReLU()]
            size = width
        total = sum(shape.numel() for shape in self.shapes.values())
        self.hypernetwork = nn.Sequential(*layers, nn.Linear(size, total))

    @property
    def saved(self) -> nn.Module:
        return self

    def bind(self, **gamma: Any) -> nn.Module:
        """The primary with the weights for gamma, predicted once."""
        numbers = self.numbers(gamma, next(self.hypernetwork.parameters()))
        return _Bound(self.primary, partial(self._run, self.hypernetwork(numbers)))

    def _run(self, flat: Tensor, *args: Any, **kwargs: Any) -> Any:
        parts = torch.split(flat, [shape.numel() for shape in self.shapes.values()], dim=-1)
        own = dict(self.primary.named_parameters())
        theta = {
            name: own[name] + part.reshape(*flat.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
        if flat.ndim == 1:
            return functional_call(self.primary, theta, args, kwargs)
        for x in args:
            if isinstance(x, Tensor):
                _check_batch(flat.shape[:-1], x)

        def one(theta: dict[str, Tensor], *row: Any) -> Any:
            batch = [x.unsqueeze(0) if isinstance(x, Tensor) else x for x in row]
            found = functional_call(self.primary, theta, tuple(batch), kwargs)
            return tuple(y[0] for y in found) if isinstance(found, tuple) else found[0]

        where = tuple(0 if isinstance(x, Tensor) else None for x in args)
        return vmap(one, in_dims=(0, *where))(theta, *args)


class Film(Control):
    r"""A plain network whose features gamma scales and shifts (FiLM, Perez et al. 2018).

    .. math:: y_c \to (1 + s_c(\gamma)) y_c + b_c(\gamma)

    for every output channel :math:`c` of every convolution and linear layer but the last one. A
    fully connected network predicts :math:`s` and :math:`b`, which are zero at the start. Its last
    layer has no bias: the weights and the bias of the layer in front do the same.
    :class:`~hyperlight.ChannelScale` is nearly the same as a head.

    Args:
        primary: the network. The first dimension of what its layers return is the batch.
        inputs: the spaces of gamma, by name.
        settings: further arguments of the network that predicts, a :class:`~hyperlight.HyperNet`:
            widths, activation and encoding.

    Raises:
        LabError: the primary has fewer than two such layers.

    Shape:
        Gamma has the batch shape ``()``, or ``(B,)`` for the ``B`` entries of a batch.

    >>> from hyperlight.lab.controls import Film
    >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> model = Film(net, {"gamma": hl.Uniform(0.0, 1.0)}, hidden=(64, 128))
    >>> x = torch.rand(4, 2)
    >>> torch.equal(model(x, gamma=torch.rand(4)), net(x))
    True
    """

    def __init__(self, primary: nn.Module, inputs: Mapping[str, Input], **settings: Any) -> None:
        super().__init__(primary)
        layers = {name: m for name, m in primary.named_modules() if isinstance(m, _LAYERS)}
        if len(layers) < 2:
            raise LabError(
                f"{type(primary).__name__} has {len(layers)} convolutions and linear layers; "
                "expected two or more, because FiLM leaves the last one as it is."
            )
        layers.popitem()
        sizes = {
            name: layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            for name, layer in layers.items()
        }
        shapes = {name: (2, size) for name, size in sizes.items()}
        self.modulation = HyperNet(inputs, shapes, init="zero", **settings)

    @property
    def saved(self) -> nn.Module:
        return self

    def sample(
        self, batch_shape: Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Draw every entry of gamma: the same values as a hypernetwork draws."""
        return self.modulation.sample(tuple(batch_shape), generator=generator)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = self.modulation.inputs
        gamma = {name: kwargs.pop(name) for name in inputs if name in kwargs}
        return self.bind(**gamma)(*args, **kwargs)

    def bind(self, **gamma: Any) -> nn.Module:
        """The primary with scales and shifts for gamma, predicted once."""
        shape = self.modulation.batch_shape(**gamma)
        return _Bound(self.primary, partial(self._run, shape, self.modulation(**gamma)))

    def _run(
        self, shape: torch.Size, predicted: Mapping[str, Tensor], x: Tensor, *args: Any, **kw: Any
    ) -> Any:
        _check_batch(shape, x)
        with ExitStack() as hooks:  # for this call alone: another gamma may be bound beside it
            for name, both in predicted.items():
                hook = partial(_modulate, both)
                handle = self.primary.get_submodule(name).register_forward_hook(hook)
                hooks.callback(handle.remove)
            return self.primary(x, *args, **kw)


def _modulate(both: Tensor, layer: nn.Module, _: Any, y: Tensor) -> Tensor:
    """Scale and shift what a layer returned, by ``batch_shape + (2, channels)``."""
    scale, shift = both.unbind(-2)
    if isinstance(layer, _CONVOLUTIONS):
        scale, shift = scale[..., None, None], shift[..., None, None]
    else:
        scale, shift = _over_inner(scale, y), _over_inner(shift, y)
    return y * (1.0 + scale) + shift


def _over_inner(rows: Tensor, like: Tensor) -> Tensor:
    """Rows ``batch_shape + (n,)`` to broadcast with ``(B, ..., m)``."""
    return rows.reshape(*rows.shape[:-1], *(1,) * (like.ndim - 2), -1) if rows.ndim > 1 else rows


def _check_batch(shape: torch.Size, x: Tensor) -> None:
    if shape not in ((), (len(x),)):
        raise LabError(
            f"Gamma has batch shape {tuple(shape)} and the batch {len(x)} entries; expected (), or "
            f"({len(x)},) for one gamma for each."
        )


def _check_names(gamma: Mapping[str, Any], inputs: Mapping[str, Input]) -> None:
    if set(gamma) != set(inputs):
        raise LabError(
            f"The network was given the inputs {listed(gamma) or 'none'}; expected "
            f"{listed(inputs)}. Pass each by name, as {next(iter(inputs))}=..."
        )


def input_channels(inputs: Mapping[str, Input]) -> int:
    """How many numbers a :class:`Channel` network reads beside its input.

    >>> from hyperlight.lab.controls import input_channels
    >>> input_channels({"gamma": hl.Uniform(0.0, 1.0, shape=3), "task": hl.Categorical(10)})
    13
    """
    return sum(
        space.features
        if isinstance(space, Encoded)
        else space.numel * (space.n if isinstance(space, Categorical) else 1)
        for space in inputs.values()
    )
