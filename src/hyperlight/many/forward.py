"""Which way a call with many sets of weights runs: on the true batch, under vmap, or in a loop."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._torch import is_abstract, is_out_of_memory, pytree
from ..bind import BindPlan
from ..errors import BindError, HyperLightError, InputError
from ..heads import Weight, built
from .arguments import Arguments, PerSample, Shared, copy_arguments, open_arguments
from .batch import BatchPlan, Changed
from .fallback import refuse_mixing, run_each
from .track import SHARED, Axis, Lost

_MOST_WAYS = 256


@dataclass(frozen=True)
class Run:
    """How a call of a model ran.

    Attributes:
        way: ``"one"`` (one set of weights), ``"batch"`` (one set per sample, once on the whole
            batch), ``"vmap"`` (every sample by itself, in one pass of :func:`torch.vmap`) or
            ``"loop"`` (one after another).
        reason: why not on the whole batch, or ``""``.
    """

    way: str
    reason: str = ""


class Many:
    """Runs a primary with many sets of weights.

    Args:
        primary: the network.
        places: the names of every predicted parameter, by the first of them.
        plan: how one set of weights is put in place.
    """

    def __init__(
        self, primary: nn.Module, places: Mapping[str, tuple[str, ...]], plan: BindPlan
    ) -> None:
        self._places, self._plan = places, plan
        self._batch: BatchPlan | None = None
        self._ways: dict[Any, Run] = {}
        self._warned: set[str] = set()
        # vmap would fail silently for these embeddings: see bind._MappedEmbedding.
        self._looped = any(
            isinstance(module, nn.Embedding)
            and type(module) is not nn.Embedding
            and module.padding_idx is not None
            for module in primary.modules()
        )

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles find out again what calls have shown."""
        return {**self.__dict__, "_batch": None, "_ways": {}, "_warned": set()}

    def bind(
        self,
        primary: nn.Module,
        theta0: Mapping[str, Tensor],
        weights: Mapping[str, Weight],
        samples: int,
        *,
        fresh: bool = False,
        layout: Axis | None = None,
    ) -> Any:
        """A network with one set of weights per sample: see :meth:`BatchPlan.bind`.

        Raises:
            BindError: the primary cannot run so, and the network is not for one call only.
        """
        if self._batch is None:
            self._batch = BatchPlan(primary, self._places)
        if self._batch.refused and not fresh and samples > 1:
            raise BindError(
                "The primary cannot run once on the whole batch with one set of weights per "
                f"sample: {self._batch.refused}. Call the model itself, model(x, ...), which runs "
                "every sample by itself, or bind one set after another."
            )
        network = self._batch.bind(primary, theta0, weights, samples, fresh, layout)
        if self._batch.stale:  # the user has changed the network
            self._batch, self._ways = None, {}
            return self.bind(primary, theta0, weights, samples, fresh=fresh, layout=layout)
        return network

    def run(
        self,
        primary: nn.Module,
        theta0: Mapping[str, Tensor],
        weights: Mapping[str, Weight],
        samples: int,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> tuple[Any, Run]:
        """Call the primary with one set of weights per sample."""
        given = open_arguments(args, kwargs, samples, primary.forward)
        refuse_mixing(primary, "take the statistics over the whole batch with model.bind(...)(x), ")
        if is_abstract():
            form = given.form
            if self._batch is not None and form in self._batch.found.by_form:
                network = self.bind(primary, theta0, weights, samples, fresh=True)
                network.sets_of_weights.form = form
                if torch.compiler.is_compiling():
                    return given.call(network), Run("batch")
                with contextlib.suppress(BindError):  # a layer that no call has reached
                    return given.call(network), Run("batch")
            size: Any = samples
            if isinstance(size, torch.SymInt) and any(map(_is_convolution, primary.modules())):
                raise InputError(
                    "torch.vmap fixes the size of the batch in a graph with convolutions. Call the "
                    "model once, with arguments like these, before it is exported with an open "
                    "batch size: it then runs on the true batch."
                )
            return self._each(primary, weights, given, Run("vmap", "it is traced"))
        if samples == 0:  # what the network gives for none
            return given.call(self._plan.bind(primary, theta0)), Run("batch")
        key = None if given.signature is None else (given.signature, torch.is_grad_enabled())
        known = self._ways.get(key)
        if known is not None:
            return self._each(primary, weights, given, known)
        output, reason = self._on_batch(primary, theta0, weights, samples, given)
        if not reason:
            return output, Run("batch")
        if given.inside:
            raise InputError(
                "The primary cannot run on the whole batch with one set of weights per sample "
                f"({reason}), and one of its arguments is an object that cannot be split into "
                "samples. Pass its tensors as arguments, or in a dict."
            )
        output, run = self._each(primary, weights, given, Run("vmap", reason))
        if key is not None:
            self._keep(key, run)
        return output, run

    def sweep(
        self,
        primary: nn.Module,
        theta0: Mapping[str, Tensor],
        weights: Mapping[str, Weight],
        samples: int,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> tuple[Any, Run]:
        """Call the primary on the same data under every set of weights."""
        refuse_mixing(primary, "")
        leaves, structure = pytree.tree_flatten((args, dict(kwargs)))
        leaves = [leaf.value if isinstance(leaf, (Shared, PerSample)) else leaf for leaf in leaves]
        facts: list[Any] = [SHARED if isinstance(leaf, Tensor) else None for leaf in leaves]
        given = Arguments(leaves, facts, [], structure, None)
        if samples == 1 or is_abstract():
            return self._each(primary, weights, given, Run("vmap"))
        if samples == 0:
            output = given.call(self._plan.bind(primary, theta0))
            none = pytree.tree_map_only(Tensor, lambda t: t.expand(0, *t.shape), output)
            return none, Run("batch")
        if self._batch is None:
            self._batch = BatchPlan(primary, self._places)
        copied, layout = copy_arguments(args, kwargs, samples, self._batch.layout)
        key = ("sweep", copied.signature, torch.is_grad_enabled())
        known = self._ways.get(key)
        if layout is None or known is not None:
            return self._each(primary, weights, given, known or Run("vmap", "no data"))
        output, reason = self._on_batch(primary, theta0, weights, samples, copied, layout)
        if not reason:
            return output, Run("batch")
        output, run = self._each(primary, weights, given, Run("vmap", reason))
        self._keep(key, run)
        return output, run

    def _on_batch(
        self,
        primary: nn.Module,
        theta0: Mapping[str, Tensor],
        weights: Mapping[str, Weight],
        samples: int,
        given: Arguments,
        layout: Axis | None = None,
    ) -> tuple[Any, str]:
        """The output on the true batch, or why there is none."""
        try:
            network = self.bind(primary, theta0, weights, samples, fresh=True, layout=layout)
            sets, call = network.sets_of_weights, functools.partial(nn.Module.__call__, network)
            before = sets.left.before()
            output = sets.call(network, "forward", call, given, layout)
            sets.left.tell(before)
            return output, ""
        except (Lost, Changed) as error:
            return None, str(error)
        except HyperLightError as error:
            if layout is None:
                raise
            # In a sweep nothing says where a batch is, and every set can run by itself.
            return None, str(error).partition(". ")[0]
        except Exception as error:  # if it is the network's own, it comes up again in the fallback
            if is_out_of_memory(error):
                raise
            return None, f"{type(error).__name__}: {error}".strip().splitlines()[0]

    def _keep(self, key: Any, run: Run) -> None:
        """Do not try the true batch again for arguments like these."""
        if len(self._ways) >= _MOST_WAYS:
            self._ways.clear()
        self._ways[key] = run

    def _each(
        self, primary: nn.Module, weights: Mapping[str, Weight], given: Arguments, planned: Run
    ) -> tuple[Any, Run]:
        """Every sample by itself."""
        if any(isinstance(fact, Axis) and fact.dim for fact in given.facts):
            raise InputError(
                "The primary cannot run on the whole batch with one set of weights per sample "
                f"({planned.reason}), and hl.PerSample says that an argument holds the samples in "
                "another dimension than the first. Pass the batch first."
            )
        loop = self._looped or planned.way == "loop"
        bind = functools.partial(self._plan.bind, primary)
        weights = {name: built(weight) for name, weight in weights.items()}
        output, way, why = run_each(bind, weights, given, loop=loop)
        run = Run(way, planned.reason + (f"; torch.vmap fails: {why}" if why else ""))
        if not is_abstract():
            self._warn(run, all(not isinstance(fact, Axis) for fact in given.facts))
        return output, run

    def _warn(self, run: Run, shared: bool) -> None:
        """Say once why the samples run apart; a sweep under vmap is as good."""
        if not run.reason or run.reason in self._warned or (shared and run.way == "vmap"):
            return
        self._warned.add(run.reason)
        how = "under torch.vmap" if run.way == "vmap" else "one after another"
        warnings.warn(
            "The primary cannot run once on the whole batch with one set of weights per sample. "
            f"Every sample runs by itself, {how}: slower, with the same results, except that what "
            "it makes of the whole batch, such as a loss, comes back one per sample. The reason: "
            f"{run.reason.rstrip('.')}.",
            stacklevel=4,
        )


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
