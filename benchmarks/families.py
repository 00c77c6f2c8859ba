"""The same hypernetwork, written as each library wants it.

A family is a module that holds a primary and the network that predicts its weights.
``forward(x, gamma)`` takes one gamma for the batch; ``each``, ``samples`` and ``sweep`` take
several, and loop if the library offers nothing better; ``put`` and ``call`` run the primary with
weights that are already predicted.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .workloads import HEADS, HIDDEN, NARROW

__all__ = ["FAMILIES", "Family", "FunctionalCall", "Ours", "Plain"]


RANK = 4  # of the changes in the comparison of ways to give every sample its own


def predicted(primary: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters to predict: all except those of normalisation layers."""
    return {
        f"{name}.{own}".lstrip("."): parameter
        for name, module in primary.named_modules()
        if not isinstance(module, nn.LayerNorm)
        for own, parameter in module.named_parameters(recurse=False)
    }


class Family(nn.Module):
    """One library's implementation, built from a primary that it may modify."""

    def forward(self, x: Tensor, gamma: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define forward.")

    def each(self, x: Tensor, gamma: Tensor) -> Tensor:
        """Run data of shape ``(M, n, ...)`` with one gamma per row, ``(M,)``."""
        return torch.stack([self(own, g) for own, g in zip(x, gamma, strict=True)])

    def samples(self, x: Tensor, gamma: Tensor) -> Tensor:
        """Run data of shape ``(B, ...)`` with one gamma per sample, ``(B,)``."""
        return self.each(x.unsqueeze(1), gamma).flatten(0, 1)

    def sweep(self, x: Tensor, gamma: Tensor) -> Tensor:
        """Run data of shape ``(n, ...)`` with every gamma of ``(M,)``; returns ``(M, n, ...)``."""
        return torch.stack([self(x, g) for g in gamma])

    def put(self) -> Any:
        """Tensors for :meth:`call`, in the form that the family needs."""
        return {name: p.detach().clone() for name, p in self.primary.named_parameters()}

    def call(self, tensors: Any, x: Tensor) -> Tensor:
        """Run the primary with these tensors as its weights."""
        output: Tensor = functional_call(self.primary, tensors, (x,))
        return output

    primary: nn.Module


class Plain(Family):
    """The plain network: the primary alone, on the same data. The reference for all the others."""

    def __init__(self, primary: nn.Module) -> None:
        super().__init__()
        self.primary = primary

    def forward(self, x: Tensor, gamma: Tensor) -> Tensor:
        output: Tensor = self.primary(x)
        return output

    def each(self, x: Tensor, gamma: Tensor) -> Tensor:
        output: Tensor = self.primary(x.flatten(0, 1))
        return output.unflatten(0, x.shape[:2])

    def samples(self, x: Tensor, gamma: Tensor) -> Tensor:
        return self(x, gamma)

    def sweep(self, x: Tensor, gamma: Tensor) -> Tensor:
        return self.each(x.expand(len(gamma), *x.shape), gamma)

    def call(self, tensors: Any, x: Tensor) -> Tensor:
        output: Tensor = self.primary(x)
        return output


class Ours(Family):
    """HyperLight, this version, with its defaults."""

    def __init__(self, primary: nn.Module, per_gamma: bool = False) -> None:
        from hyperlight.bind import BindPlan

        super().__init__()
        # With several images per gamma, the images of one gamma are the primary's batch.
        primary = nn.Sequential(nn.Flatten(0, 1), primary) if per_gamma else primary
        self.model = self.make(primary)
        self._plan = BindPlan(primary, {name: [name] for name in self.model.theta0})

    def make(self, primary: nn.Module) -> Any:
        import hyperlight as hl

        return hl.hypernetize(primary, inputs={"gamma": hl.Uniform(0.0, 1.0)})

    def forward(self, x: Tensor, gamma: Tensor) -> Tensor:
        output: Tensor = self.model(x, gamma=gamma)
        return output

    def each(self, x: Tensor, gamma: Tensor) -> Tensor:
        output: Tensor = self(x, gamma)  # (M * n, classes) on the whole batch
        return output.reshape(*x.shape[:2], output.shape[-1])

    def sweep(self, x: Tensor, gamma: Tensor) -> Tensor:
        output: Tensor = self.model.sweep(x, gamma=gamma)
        return output

    def put(self) -> Any:
        return self.model.predict(gamma=0.5)

    def call(self, tensors: Any, x: Tensor) -> Tensor:
        # What model.forward does after predicting the weights.
        output: Tensor = self._plan.bind(self.model.primary, tensors)(x)
        return output


class OursWide(Ours):
    """HyperLight, this version, with the hidden layers of the paper: a head of 128 features."""

    head: Any = None

    def make(self, primary: nn.Module) -> Any:
        import hyperlight as hl

        head = hl.Dense() if self.head is None else hl.LowRank(self.head)
        spaces = {"gamma": hl.Uniform(0.0, 1.0)}
        return hl.hypernetize(primary, inputs=spaces, hidden=HIDDEN, head=head)


class OursRank4(OursWide):
    """The same with a low-rank head of rank 4."""

    head = 4


class OursRank8(OursWide):
    """The same with a low-rank head of rank 8."""

    head = 8


def matrices(primary: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers, by name: all that adapters of low rank usually change."""
    return {name: m for name, m in primary.named_modules() if isinstance(m, nn.Linear)}


class OursShared(Family):
    """HyperLight, this version: changes of rank 4 to linear layers, one gamma for the batch."""

    def __init__(self, primary: nn.Module, everything: bool = False) -> None:
        import hyperlight as hl

        super().__init__()
        self.model = hl.hypernetize(
            primary,
            inputs={"gamma": hl.Uniform(0.0, 1.0)},
            targets=None if everything else [f"{name}.weight" for name in matrices(primary)],
            hidden=HIDDEN,
            head=hl.LowRank(RANK),
        )

    def forward(self, x: Tensor, gamma: Tensor) -> Tensor:
        output: Tensor = self.model(x, gamma=gamma)
        return output

    def samples(self, x: Tensor, gamma: Tensor) -> Tensor:
        return self(x, gamma[0])


class OursSamples(OursShared):
    """The same with one gamma per sample."""

    def samples(self, x: Tensor, gamma: Tensor) -> Tensor:
        return self(x, gamma)


class HeadShared(Family):
    """HyperLight, this version, with one of its heads: one gamma for the batch."""

    head: str

    def __init__(self, primary: nn.Module) -> None:
        import hyperlight as hl

        super().__init__()
        head = getattr(hl, self.head)()
        self.model = hl.hypernetize(primary, {"gamma": hl.Uniform(0.0, 1.0)}, head=head)

    def samples(self, x: Tensor, gamma: Tensor) -> Tensor:
        output: Tensor = self.model(x, gamma=gamma[0])
        return output


class HeadSamples(HeadShared):
    """The same with one gamma per sample."""

    def samples(self, x: Tensor, gamma: Tensor) -> Tensor:
        output: Tensor = self.model(x, gamma=gamma)
        return output


class OursSamplesAll(OursSamples):
    """The same, predicting everything but normalisation layers, as ``hypernetize`` does."""

    def __init__(self, primary: nn.Module) -> None:
        super().__init__(primary, everything=True)


def _trunk(inputs: int, hidden: Sequence[int] = HIDDEN) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip((inputs, *hidden), hidden, strict=False):
        layers += [nn.Linear(a, b), nn.LeakyReLU()]
    return nn.Sequential(*layers)


class FunctionalCall(Family):
    """Written by hand with ``torch.func``: ``theta0`` plus one flat head without bias."""

    hidden = HIDDEN

    def __init__(self, primary: nn.Module) -> None:
        super().__init__()
        self.primary = primary
        self.trunk = _trunk(2, self.hidden)
        self.theta0 = predicted(primary)
        self.sizes = [p.numel() for p in self.theta0.values()]
        self.head = nn.Linear(self.hidden[-1], sum(self.sizes), bias=False)
        nn.init.normal_(self.head.weight, 0.0, 0.01)

    def theta(self, gamma: Tensor) -> dict[str, Tensor]:
        angle = gamma.unsqueeze(-1) * (math.pi / 2)
        flat = self.head(self.trunk(torch.cat([angle.cos(), angle.sin()], dim=-1)))
        parts = flat.split(self.sizes, dim=-1)
        return {
            name: own + part.unflatten(-1, own.shape)
            for (name, own), part in zip(self.theta0.items(), parts, strict=True)
        }

    def forward(self, x: Tensor, gamma: Tensor) -> Tensor:
        return self.call(self.theta(gamma), x)

    def each(self, x: Tensor, gamma: Tensor) -> Tensor:
        output: Tensor = torch.vmap(self.call)(self.theta(gamma), x)
        return output

    def sweep(self, x: Tensor, gamma: Tensor) -> Tensor:
        output: Tensor = torch.vmap(self.call, in_dims=(0, None))(self.theta(gamma), x)
        return output


class FunctionalCallNarrow(FunctionalCall):
    """The same with a narrow head."""

    hidden = NARROW


class Vmapped(Family):
    """By hand: rank 4 factors from one head; ``torch.vmap`` of ``functional_call``."""

    def __init__(self, primary: nn.Module) -> None:
        super().__init__()
        self.primary = primary
        self.layers = {name: layer.weight.shape for name, layer in matrices(primary).items()}
        self.trunk = _trunk(2)
        self.sizes = [size * RANK for shape in self.layers.values() for size in shape]
        self.head = nn.Linear(HIDDEN[-1], sum(self.sizes), bias=False)
        nn.init.normal_(self.head.weight, 0.0, 0.01)

    def factors(self, gamma: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Left ``(B, rows, rank)`` and right ``(B, rank, columns)`` of every change."""
        angle = gamma.unsqueeze(-1) * (math.pi / 2)
        flat = self.head(self.trunk(torch.cat([angle.cos(), angle.sin()], dim=-1)))
        parts = iter(flat.split(self.sizes, dim=-1))
        return {
            name: (
                next(parts).unflatten(-1, (rows, RANK)),
                next(parts).unflatten(-1, (RANK, columns)),
            )
            for name, (rows, columns) in self.layers.items()
        }

    def samples(self, x: Tensor, gamma: Tensor) -> Tensor:
        theta = {
            f"{name}.weight": self.primary.get_parameter(f"{name}.weight") + left @ right
            for name, (left, right) in self.factors(gamma).items()
        }

        def one(weights: dict[str, Tensor], own: Tensor) -> Tensor:
            output: Tensor = functional_call(self.primary, weights, (own.unsqueeze(0),))
            return output.squeeze(0)

        output: Tensor = torch.vmap(one, randomness="different")(theta, x)
        return output


class Patched(Vmapped):
    """By hand, as Doc-to-LoRA describes it: every linear layer has another ``forward``.

    It adds to the layer's own output the product with this sample's factors, on the true batch.
    """

    def __init__(self, primary: nn.Module) -> None:
        super().__init__(primary)
        self.now: dict[str, tuple[Tensor, Tensor]] = {}
        for name, layer in matrices(primary).items():
            layer.forward = functools.partial(self._linear, name, layer)  # type: ignore[method-assign]

    def _linear(self, name: str, layer: nn.Linear, x: Tensor) -> Tensor:
        left, right = self.now[name]
        change = torch.einsum("b...i,bri->b...r", x, right)
        change = torch.einsum("b...r,bor->b...o", change, left)
        return nn.functional.linear(x, layer.weight, layer.bias) + change

    def each(self, x: Tensor, gamma: Tensor) -> Tensor:
        raise TypeError("patched linear layers leave convolutions and embeddings as they are")

    def samples(self, x: Tensor, gamma: Tensor) -> Tensor:
        self.now = self.factors(gamma)  # kept until the next call: checkpoints read it in backward
        output: Tensor = self.primary(x)
        return output


class HyperLight005(Family):
    """HyperLight 0.0.5 as in its README: one gamma at a time, of shape ``(1, 1)``."""

    hidden = HIDDEN

    def __init__(self, primary: nn.Module) -> None:
        hyperlight: Any = importlib.import_module("hyperlight")  # the release
        if hyperlight.__version__ != "0.0.5":
            raise ImportError(f"hyperlight 0.0.5 is needed here; found {hyperlight.__version__}.")
        super().__init__()
        self.primary = hyperlight.hypernetize(primary, parameters=list(predicted(primary).values()))
        self.hypernet = hyperlight.HyperNet(
            input_shapes={"gamma": (1,)},
            output_shapes=self.primary.external_shapes(),
            hidden_sizes=list(self.hidden),
        )

    def forward(self, x: Tensor, gamma: Tensor) -> Tensor:
        return self.call(self.hypernet(gamma=gamma.reshape(1, 1)), x)

    def put(self) -> Any:
        with torch.no_grad():
            return self.hypernet(gamma=torch.full((1, 1), 0.5))

    def call(self, tensors: Any, x: Tensor) -> Tensor:
        with self.primary.using_externals(tensors):
            output: Tensor = self.primary(x)
        return output


class HyperLight005Narrow(HyperLight005):
    """The same with a narrow head."""

    hidden = NARROW


class HypNetTorch(Family):
    """hypnettorch's ``HMLP``; ``functional_call`` passes its weights to the primary."""

    hidden = HIDDEN

    def __init__(self, primary: nn.Module) -> None:
        super().__init__()
        self.primary = primary.requires_grad_(False)
        self.names = list(predicted(primary))
        self.hypernet = self.make([list(p.shape) for p in predicted(primary).values()])

    def make(self, shapes: list[list[int]]) -> Any:
        from hypnettorch.hnets import HMLP

        return HMLP(
            shapes,
            uncond_in_size=1,
            cond_in_size=0,
            num_cond_embs=0,
            layers=self.hidden,
            activation_fn=nn.LeakyReLU(),
            verbose=False,
        )

    def forward(self, x: Tensor, gamma: Tensor) -> Tensor:
        weights = self.hypernet.forward(uncond_input=gamma.reshape(1, 1))
        return self.call(dict(zip(self.names, weights, strict=True)), x)

    def _weights(self, gamma: Tensor) -> list[dict[str, Tensor]]:
        """Predict as a batch, which the library supports; use one by one."""
        predictions = self.hypernet.forward(uncond_input=gamma.unsqueeze(-1))
        return [dict(zip(self.names, weights, strict=True)) for weights in predictions]

    def each(self, x: Tensor, gamma: Tensor) -> Tensor:
        pairs = zip(self._weights(gamma), x, strict=True)
        return torch.stack([self.call(weights, own) for weights, own in pairs])

    def sweep(self, x: Tensor, gamma: Tensor) -> Tensor:
        return torch.stack([self.call(weights, x) for weights in self._weights(gamma)])


class HypNetTorchNarrow(HypNetTorch):
    """The same with a narrow head."""

    hidden = NARROW


class HypNetTorchChunked(HypNetTorch):
    """hypnettorch's ``ChunkedHMLP``: one small hypernetwork, called for every chunk."""

    def make(self, shapes: list[list[int]]) -> Any:
        from hypnettorch.hnets import ChunkedHMLP

        return ChunkedHMLP(
            shapes,
            chunk_size=10_000,
            uncond_in_size=1,
            cond_in_size=0,
            num_cond_embs=0,
            layers=self.hidden,
            activation_fn=nn.LeakyReLU(),
            verbose=False,
        )


class HyperNN(Family):
    """hyper-nn's ``TorchHyperNetwork`` with ``generate_params`` for a gamma, as in its README."""

    def __init__(self, primary: nn.Module) -> None:
        from hypernn.torch import TorchHyperNetwork

        super().__init__()

        class Network(TorchHyperNetwork):  # type: ignore[misc]
            def __init__(self, target: nn.Module) -> None:
                super().__init__(target)
                self.trunk = _trunk(1)
                self.weight_generator = nn.Linear(HIDDEN[-1], int(self.num_target_parameters))

            def generate_params(self, gamma: Tensor) -> tuple[Tensor, dict[str, Any]]:
                return self.weight_generator(self.trunk(gamma.reshape(1, 1))).view(-1), {}

        self.network = Network(primary)

    def forward(self, x: Tensor, gamma: Tensor) -> Tensor:
        output: Tensor = self.network(x, generate_params_kwargs={"gamma": gamma})
        return output

    def put(self) -> Any:
        with torch.no_grad():
            return self.network.generate_params(torch.tensor(0.5))[0]

    def call(self, tensors: Any, x: Tensor) -> Tensor:
        output: Tensor = self.network(x, generated_params=tensors)
        return output


class TorchHyper(Family):
    """torchhyper's ``HyperNetwork``, one output layer per tensor, as in its README."""

    def __init__(self, primary: nn.Module) -> None:
        super().__init__()
        # The package imports diffusers and others without declaring them; this one file needs only
        # torch and numpy.
        found = importlib.util.find_spec("torchhyper")
        if found is None or found.submodule_search_locations is None:
            raise ModuleNotFoundError("No module named 'torchhyper'")
        path = f"{next(iter(found.submodule_search_locations))}/model/hypernetwork_architectures.py"
        spec = importlib.util.spec_from_file_location("benchmarks._torchhyper", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.primary = primary.requires_grad_(False)
        self.hypernet = module.HyperNetwork(1, list(HIDDEN), primary)

    def forward(self, x: Tensor, gamma: Tensor) -> Tensor:
        return self.call(self.hypernet(gamma.reshape(1, 1)), x)


FAMILIES: dict[str, type[Family]] = {
    "plain": Plain,
    "ours": Ours,
    "ours-wide": OursWide,
    "ours-rank4": OursRank4,
    "ours-rank8": OursRank8,
    "ours-shared": OursShared,
    "ours-samples": OursSamples,
    "ours-samples-all": OursSamplesAll,
    "functional-call": FunctionalCall,
    "functional-call-narrow": FunctionalCallNarrow,
    "vmap": Vmapped,
    "patched": Patched,
    "hyperlight": HyperLight005,
    "hyperlight-narrow": HyperLight005Narrow,
    "hypnettorch": HypNetTorch,
    "hypnettorch-narrow": HypNetTorchNarrow,
    "hypnettorch-chunked": HypNetTorchChunked,
    "hyper-nn": HyperNN,
    "torchhyper": TorchHyper,
    **{
        f"{name}-{kind}": type(f"{head}{kind.title()}", (base,), {"head": head})
        for name, head in HEADS.items()
        for kind, base in (("shared", HeadShared), ("samples", HeadSamples))
    },
}
