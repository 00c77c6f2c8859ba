"""A primary and the hypernetwork that predicts changes to its weights.

Read ``HyperModel.forward`` first and follow the calls downwards: ``hypernet`` (the inputs, their
encoding, the trunk), ``heads`` (the change, and its sum with theta0), ``bind`` (the weights in
the primary). docs/architecture.md has the whole tour.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._torch import is_distributed, pytree
from .bind import BindPlan
from .directions import truncated
from .encoded import Encoded
from .encodings import CosSin, Encode
from .errors import ConfigurationError, InputError, did_you_mean, listed, sharded
from .heads import Dense, Head, Weight, built, dense, find_head, scale_change
from .hypernet import HyperNet
from .init import Init, Zero, find_init
from .inputs import GAIN, Input
from .many import Many, Run, open_arguments, unwrap
from .signatures import SignatureOfForward, SignedMethod, arguments_of, keyword, with_keywords
from .summary import Summary, summarize
from .targets import Targets, attribute, select
from .trunk import Activation, OwnTrunk
from .widths import Directions, Hidden

N = TypeVar("N", bound=nn.Module)
if TYPE_CHECKING:  # typing's own has defaults from Python 3.13 on
    from typing_extensions import TypeVar as TypeVarWithDefault

    M = TypeVarWithDefault("M", bound=nn.Module, covariant=True, default=Any)
else:
    M = TypeVar("M", bound=nn.Module, covariant=True)


class HyperModel(nn.Module, Generic[M]):
    r"""A primary whose weights depend on named inputs.

    .. math:: \theta = \theta^0 + h(\gamma; \omega)

    The primary's own parameters are :math:`\theta^0`; ``hypernet`` is :math:`h`. Made by
    :func:`hypernetize`.

    Type checkers know it as ``HyperModel[M]``, where ``M`` is the class of the primary: that of
    ``primary`` and of what :meth:`bind` and :meth:`at` return.

    Args:
        primary: the network; it is not changed, and not copied.
        hypernet: predicts tensors by the names of parameters of the primary.

    Attributes:
        primary: the network that was given; it holds ``theta0`` under its own names.
        hypernet: the hypernetwork; it holds ``omega``.
        takes_gain: whether ``gain`` in a call multiplies the change; otherwise it is an input, or
            an argument of the primary.

    The signature of a model and of its ``forward`` is that of the primary's, with the inputs
    among its keywords: trainers read it to choose the columns of a data set.

    Beside the inputs, ``forward``, :meth:`predict`, :meth:`bind`, :meth:`at` and :meth:`sweep`
    take ``gain``, which multiplies the change: :math:`\theta = \theta^0 + gain \cdot h(\gamma)`. 1
    changes nothing, and 0 gives the primary itself. It is a number or a tensor of batch shape
    ``()`` or ``(B,)``, and is differentiated as the inputs are. An input called ``gain`` comes
    before it. In ``forward`` and ``sweep`` so does an argument that the primary's forward names
    ``gain`` (not one that it takes by ``**kwargs``): use ``model.bind(..., gain=1.5)(x)`` there.

    >>> import inspect
    >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"scale": hl.Uniform(0.0, 0.5)})
    >>> list(inspect.signature(model.forward).parameters)
    ['input', 'scale', 'gain']
    >>> x = torch.ones(3, 2)
    >>> torch.equal(model(x, scale=0.3, gain=0.0), model.primary(x))
    True
    """

    __signature__ = SignatureOfForward()

    # Of a model inside of another one: they hold structure, by path, and no weights.
    shared_when_bound = frozenset(("_plan", "_many"))

    def __init__(self, primary: M, hypernet: HyperNet) -> None:
        super().__init__()
        targets = select(primary, lambda name, _: name in hypernet.shapes)
        missing = set(hypernet.shapes) - {target.name for target in targets}
        if missing:
            raise ConfigurationError(
                f"The hypernetwork predicts {listed(sorted(missing))}, which "
                f"{type(primary).__name__} has no parameter for. Name shapes as "
                "primary.named_parameters() does."
            )
        for target in targets:
            if hypernet.shapes[target.name] != target.shape:
                raise ConfigurationError(
                    f"The hypernetwork predicts {target.name!r} with shape "
                    f"{tuple(hypernet.shapes[target.name])}; the parameter of the primary has "
                    f"shape {tuple(target.shape)}."
                )
        _refuse_clashes(primary, hypernet.inputs)
        self.primary: M = primary
        self.hypernet = hypernet
        self._names = tuple(target.name for target in targets)
        self._plan = BindPlan(primary, {target.name: target.aliases for target in targets})
        self._many = Many(primary, self._plan.places, self._plan)
        self.last_run: Run | None = None
        self._sign()

    def _sign(self) -> None:
        taken = {*self.inputs, *_keywords_of(self.primary)}
        self.takes_gain = "gain" not in taken
        keywords = [keyword(name) for name in self.inputs]
        keywords += [keyword("gain", default=1.0)] * self.takes_gain
        signature = with_keywords(arguments_of(self.primary), keywords)
        self.__dict__["_signed"] = vars(HyperModel)["forward"].signed(signature)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())  # type: ignore[no-untyped-call]
        state.pop("_signed", None)  # a function like this cannot be pickled
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._plan.renew(self.primary)
        self._sign()

    @SignedMethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the primary with the weights for the given inputs.

        The batch shape of the inputs decides what is shared. With ``()`` the whole batch has one
        set of weights. With ``(B,)`` every sample has its own, in one forward on the whole batch:
        layers with predicted weights apply to each sample its own, all other code runs as it
        does without a hypernetwork. Every tensor among the arguments then holds ``B`` entries in
        its first dimension. Wrap one that all samples share in :class:`~hyperlight.Shared`, and
        one that holds them elsewhere in :class:`~hyperlight.PerSample`; numbers and tensors
        without dimensions are shared. Dropout draws for every sample separately.

        A primary that mixes samples before a layer with predicted weights, or whose samples
        cannot be followed, runs sample by sample on batches of one, with a warning. Every tensor
        that it returns is then stacked: ``(B, ...)`` in place of a leading 1, and ``(B,)`` for a
        scalar. ``last_run`` says how the call ran and why. docs/per-sample.md has all rules.

        What the primary's forward leaves on ``self`` (an auxiliary loss, a state) is gone after
        the call, with a warning the first time. To read it, keep the bound network:
        ``net = model.bind(...); y = net(x); net.aux_loss``.

        Args:
            args: passed to the primary.
            kwargs: the inputs of the hypernetwork, by name, each a number or a tensor of
                shape ``batch_shape + event_shape``; and ``gain``, which multiplies the change.
                All others are passed to the primary.

        Returns:
            What the primary returns for the batch; a scalar loss is that of the batch.

        Raises:
            InputError: as for :meth:`predict`; or with one value per sample: another batch
                shape than ``(B,)``, a tensor of another size, a layer that takes statistics
                over the batch in training mode (:meth:`bind` runs it), or an argument that is
                an object where every sample has to run by itself.

        >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"scale": hl.Uniform(0.0, 0.5)})
        >>> model(torch.zeros(4, 2), scale=torch.rand(4) / 2).shape
        torch.Size([4, 1])
        >>> model.last_run
        Run(way='batch', reason='')
        """
        theta0, (features, gain) = self.theta0, self._features(self._take_inputs(kwargs, args))
        if features.ndim > 2:
            raise InputError(
                f"The inputs {listed(self.inputs)} have batch shape {tuple(features.shape[:-1])}; "
                "expected () for one set of weights, or (B,) for one per sample. Flatten them, or "
                "use model.sweep for the same data under every set."
            )
        samples = None if features.ndim == 1 else features.shape[0]
        if samples == 1:  # the batch is one sample: one set of weights
            opened = open_arguments(args, kwargs, 1, self.primary.forward)
            args, kwargs = opened.args, opened.kwargs
            features, gain = features[0], None if gain is None else gain[0]
        elif samples is None:
            args, kwargs = unwrap(args, kwargs)
        theta = self._weights(theta0, features, gain)
        if features.ndim == 1:
            network, left = self._plan.bind_watched(self.primary, theta)
            before = left.before()
            output, run = network(*args, **kwargs), Run("one")
            left.tell(before)
        else:
            sets = features.shape[0]
            output, run = self._many.run(self.primary, theta0, theta, sets, args, kwargs)
        if not torch.compiler.is_compiling():
            self.last_run = run
        return output

    # The Trainer of transformers asks the class which arguments are labels, and evaluates no loss
    # if it names none.
    forward.function.__signature__ = with_keywords(
        inspect.signature(forward.function), [keyword("labels", default=None)]
    )

    @property
    def theta0(self) -> dict[str, Tensor]:
        r"""The predicted parameters as the primary holds them, :math:`\theta^0`, by name.

        To each of these the hypernetwork adds its change (paper, section 4, "Output Encoding").
        They are the primary's own parameters, not copies: train them, freeze them with
        ``requires_grad_(False)``, or load pretrained values with
        ``model.primary.load_state_dict``. In the classical formulation (``residual=False``) they
        start at zero and are the bias of the hypernetwork's last layer.

        Raises:
            ConfigurationError: one of them is sharded apart from the model.

        >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"scale": hl.Uniform(0.0, 0.5)})
        >>> model.theta0["weight"] is model.primary.weight
        True
        """
        found = {}
        for name in self._names:
            try:
                value = attribute(self.primary, name)
            except AttributeError:
                value = None
            if type(value) is not nn.Parameter:  # it seldom is anything else
                self._check_theta0(name, value)
            found[name] = value
        return found

    def _check_theta0(self, name: str, value: Any) -> None:
        if not isinstance(value, Tensor):
            raise ConfigurationError(
                f"{name!r} is no parameter of the primary any more: its layer was replaced "
                "since the model was made, as quantization does. Change the network that "
                "model.at(...) returns, or the primary before hypernetize."
            )
        if not torch.compiler.is_compiling() and is_distributed(value):
            raise sharded(f"Parameter {name!r} of the primary is")

    @property
    def inputs(self) -> dict[str, Input]:
        """The spaces of the inputs, by name."""
        return self.hypernet.inputs

    def sample(
        self, batch_shape: int | Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> dict[str, Any]:
        """Draw every input from its space: ``{name: batch_shape + event_shape}``.

        A single number of draws, such as 32, is the batch shape ``(32,)``. An
        :class:`~hyperlight.Encoded` input is drawn from its examples.

        >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"scale": hl.Uniform(0.0, 0.5)})
        >>> model.sample(generator=torch.Generator().manual_seed(0))["scale"].shape
        torch.Size([])
        """
        return self.hypernet.sample(batch_shape, generator=generator)

    def predict(self, **gamma: Any) -> dict[str, Tensor]:
        r"""The weights :math:`\theta = \theta^0 + h(\gamma)`: ``{name: batch_shape + shape}``.

        Named and ordered as the targets are in ``primary.named_parameters()``. Every tensor has
        the dtype of its parameter.

        Args:
            gamma: every input, by name: a number, or a tensor of shape
                ``batch_shape + event_shape``; and ``gain``, if the change is to be multiplied.

        Raises:
            InputError: a name, type, shape, device or value that does not fit.
        """
        theta = self._weights(self.theta0, *self._features(gamma))
        return {name: dense(theta[name]) for name in self._names}

    def bind(self, **gamma: Any) -> M:
        """The primary with the weights for ``gamma`` in place, predicted once.

        The bound network is a module of the primary's own class: call it, call its other methods,
        keep it. Its modules, mode (train or eval), hooks and containers (a dict or list as an
        attribute) are its own, and what its forward assigns to ``self`` stays on it: read an
        auxiliary loss or a state there. Buffers and parameters that are not predicted are those
        of the primary: move or cast the model, not the bound network. Gradients flow to the
        hypernetwork and to ``theta0``. It cannot be copied or pickled: see :meth:`at`.

        With inputs of batch shape ``(B,)`` the network holds one set of weights per sample. All
        its public methods run on a batch of ``B`` samples, with arguments as for
        :meth:`forward`. BatchNorm in training mode takes its statistics over that batch. Unlike
        the model, a bound network never runs sample by sample: where the samples cannot be
        followed, the call raises. Outside of a call, its predicted parameters read as ``theta0``.

        Args:
            gamma: every input, by name: batch shape ``()`` or ``(B,)``; and ``gain``.

        Raises:
            InputError: as for :meth:`predict`, or the batch shape has several dimensions.
            BindError: the primary cannot run with one set of weights per sample, here or in a
                later call.

        >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"scale": hl.Uniform(0.0, 0.5)})
        >>> net = model.bind(scale=0.3)
        >>> type(net).__name__, net(torch.zeros(4, 2)).shape
        ('Linear', torch.Size([4, 1]))
        >>> model.bind(scale=torch.rand(4) / 2)(torch.zeros(4, 2)).shape
        torch.Size([4, 1])
        """
        theta0, (features, gain) = self.theta0, self._features(gamma)
        if features.ndim > 2:
            raise InputError(
                f"The inputs {listed(self.inputs)} have batch shape {tuple(features.shape[:-1])}; "
                "expected () for one set of weights, or (B,) for one per sample."
            )
        theta = self._weights(theta0, features, gain)
        if features.ndim == 1:
            return self._plan.bind(self.primary, {name: dense(w) for name, w in theta.items()})
        theta = {name: built(weight) for name, weight in theta.items()}
        bound: M = self._many.bind(self.primary, theta0, theta, features.shape[0])
        return bound

    def at(self, **gamma: Any) -> M:
        """The primary for one ``gamma`` as an independent module, to export and ship.

        A deep copy of the primary, of its own class and with its own parameters, into which
        the weights are copied: nothing of the hypernetwork is left, and no gradients flow
        back. Its ``state_dict`` loads into any module of the primary's class.

        Args:
            gamma: every input, by name, without batch dimensions; and ``gain``.

        Raises:
            InputError: as for :meth:`bind`.
            ConfigurationError: the primary cannot be copied.

        >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"scale": hl.Uniform(0.0, 0.5)})
        >>> plain = model.at(scale=0.3)
        >>> torch.equal(plain.weight, model.predict(scale=0.3)["weight"])
        True
        """
        with torch.no_grad():
            features, gain = self._features(gamma)
            if features.ndim > 1:
                raise InputError(
                    f"The inputs {listed(self.inputs)} have batch shape "
                    f"{tuple(features.shape[:-1])}: that is several sets of weights, and a module "
                    "of its own holds one. Pass a single value for each input (batch shape ())."
                )
            theta = self._weights(self.theta0, features, gain)
            values = {name: dense(theta[name]) for name in self._names}
            self._plan.bind(self.primary, values)  # refuses what has changed in the primary
            plain = _copied(self.primary, "model.at copies the primary")
            for name, value in values.items():
                plain.get_parameter(name).copy_(value)
            self._plan.forget(plain)  # what it has computed from theta0
        return plain

    def sweep(self, *args: Any, **kwargs: Any) -> Any:
        """Run the primary on the same data under many sets of weights.

        Tensors with as many entries in their first dimension as the first tensor argument are the
        data; all others are shared. Layers with predicted weights run as in :meth:`forward`.
        Modules before the first of them run once for all sets.

        Args:
            args: passed to the primary, the same to each.
            kwargs: the inputs of the hypernetwork, by name, with batch shapes that broadcast
                to at least one dimension, as in ``scale=torch.linspace(0, 1, 64)``; and ``gain``,
                which may be swept as well. All others are passed to the primary.

        Returns:
            What the primary returns under each set. Its tensors have the batch shape in front,
            ``(64, B, ...)``, and ``(64,)`` for a scalar.

        Raises:
            InputError: as for :meth:`predict`; there is one set of weights only; or a layer
                takes statistics over the batch in training mode.

        >>> model = hl.hypernetize(nn.Linear(2, 3), inputs={"scale": hl.Uniform(0.0, 0.5)})
        >>> model.sweep(torch.rand(4, 2), scale=torch.linspace(0.0, 0.5, 7)).shape
        torch.Size([7, 4, 3])
        """
        features, gain = self._features(self._take_inputs(kwargs))
        batch_shape = features.shape[:-1]
        if not batch_shape:
            raise InputError(
                f"The inputs {listed(self.inputs)} have batch shape (): that is one set of "
                "weights. Pass the values to sweep over as tensors with a batch dimension, or "
                "call model(x, ...)."
            )
        theta0, flat = self.theta0, features.flatten(0, -2)
        theta = self._weights(theta0, flat, None if gain is None else gain.flatten())
        output, run = self._many.sweep(self.primary, theta0, theta, len(flat), args, kwargs)
        if not torch.compiler.is_compiling():
            self.last_run = run
        return pytree.tree_map_only(Tensor, lambda t: t.unflatten(0, batch_shape), output)

    def extend(
        self,
        name: str,
        n: int = 1,
        *,
        like: Any = None,
        optimizer: Optimizer | None = None,
        generator: torch.Generator | None = None,
    ) -> nn.Parameter:
        """Add categories to an input: a task, a client, a person that comes later.

        The input gets ``n`` more categories behind those that it has, each with an embedding. All
        other parameters stay the same, and so do the predictions for all other values, bit for
        bit. The input that was declared is not changed: ``model.inputs[name]`` is a new one.

        The table of embeddings becomes a new parameter. An optimizer made before would go on with
        the old one, and no embedding would be trained: pass it as ``optimizer``, or make a new
        one. Wrap the model in ``DistributedDataParallel`` anew.

        To train the new categories alone, give the table to an optimizer without weight decay: the
        embeddings of other categories have no gradient, and stay as they are::

            table = model.extend("client")
            optimizer = torch.optim.Adam([table], lr=0.05)

        Args:
            name: a :class:`~hyperlight.Categorical` input.
            n: how many categories to add.
            like: where the new categories start: at a category (``3``) or a blend (``{0: 0.5, 3:
                0.5}``, or what :func:`~hyperlight.tune` found), one for all or one for each. By
                default the embeddings are drawn, as at the start.
            optimizer: one that trains the model. It goes on with the new table in place of the
                old, with its state; for the new categories that is zero.
            generator: draws the embeddings; the default is PyTorch's own.

        Returns:
            The table of embeddings, ``(categories, features)``.

        Raises:
            InputError: the input is unknown or not categorical, or ``like`` does not fit it.
            ConfigurationError: ``n`` is not a positive integer, ``optimizer`` does not train the
                embeddings, or the model is a bound network or sharded.

        >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"client": hl.Categorical(10)})
        >>> before = model.predict(client=3)["weight"]
        >>> table = model.extend("client", like=3)
        >>> model.inputs["client"].n, torch.equal(model.predict(client=10)["weight"], before)
        (11, True)
        """
        return self.hypernet.extend(name, n, like=like, optimizer=optimizer, generator=generator)

    def truncate(self, directions: int, values: Mapping[str, Any] | None = None) -> HyperModel[M]:
        r"""A smaller model, in which weights move in the strongest ``directions`` alone.

        Train wide, ship small: over draws of the inputs, a trained dense head :math:`W f` moves in
        few directions. The new model has the best approximation of it that has ``directions``
        columns, by singular value decomposition. :func:`direction_profile` says how large the
        error is for each number.

        The primary, with :math:`\theta^0`, is shared with this model; the hypernetwork is a copy.
        To go on training the smaller model, make a new optimizer for it.

        Args:
            directions: how many to keep; fewer than the features that the head reads.
            values: every input by name, with one batch dimension, for which the approximation is
                best; by default 1024 draws of the inputs, always the same ones.

        Raises:
            ConfigurationError: the head is not :class:`Dense`, or reads no more features than that.

        >>> model = hl.hypernetize(nn.Linear(8, 8), inputs={"scale": hl.Uniform(0.0, 1.0)})
        >>> model.truncate(2).hypernet.head
        Dense(features=2, predictions=72)
        """
        small = HyperModel(self.primary, truncated(self.hypernet, directions, values))
        small.training = self.training  # not .train(), which would change the primary's modules
        return small

    def summary(self) -> Summary:
        """The sizes of all parts, and the memory that training takes; ``print`` it for a table.

        To see the sizes before anything is allocated, use
        ``hypernetize(..., device="meta").summary()``.

        >>> model = hl.hypernetize(nn.Linear(2, 1), inputs={"scale": hl.Uniform(0.0, 0.5)})
        >>> model.summary().parameters == sum(p.numel() for p in model.parameters())
        True
        """
        return summarize(self.hypernet, self.primary)

    def _take_inputs(self, kwargs: dict[str, Any], args: tuple[Any, ...] = ()) -> dict[str, Any]:
        """Take the inputs of the hypernetwork out of the keyword arguments."""
        inputs = self.hypernet.inputs
        gamma = {name: kwargs.pop(name) for name in inputs if name in kwargs}
        if len(gamma) < len(inputs):
            self._refuse_missing(gamma, kwargs, args)
        if self.takes_gain and "gain" in kwargs:
            gamma["gain"] = kwargs.pop("gain")
        return gamma

    def _features(self, gamma: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """What the head reads, and the gain if one is given, of one batch shape."""
        gain = None if "gain" in self.inputs else gamma.pop("gain", None)
        features = self.hypernet.features(**gamma)
        if gain is None:
            return features, None
        gain = as_gain(gain, self.hypernet, features.shape[:-1])
        return features.expand(*gain.shape, features.shape[-1]), gain

    def _weights(
        self, theta0: dict[str, Tensor], features: Tensor, gain: Tensor | None
    ) -> dict[str, Weight]:
        """The sum of ``theta0`` and the change, which the gain multiplies."""
        theta = self.hypernet.head.add_to(theta0, features)
        return theta if gain is None else scale_change(theta0, theta, gain)

    def _refuse_missing(
        self, gamma: Mapping[str, Any], others: Mapping[str, Any], args: tuple[Any, ...]
    ) -> None:
        name = next(name for name in self.inputs if name not in gamma)
        hint = next((f" {o!r} was given." for o in others if did_you_mean(o, [name])), "")
        if any(isinstance(value, Mapping) and name in value for value in args):
            hint = " A dict with it was given by position: write model(x, **gamma)."
        raise InputError(
            f"Hypernetwork input {name!r} is missing.{hint} Pass it by keyword: "
            f"model(x, {name}=...). The inputs of this model are {listed(self.inputs)}."
        )


def as_gain(gain: Any, hypernet: HyperNet, batch_shape: torch.Size) -> Tensor:
    """The gain as a tensor of the batch shape that it has together with the inputs."""
    try:
        value = GAIN.tensor(gain, dtype=hypernet.dtype, device=hypernet.device)
    except InputError as error:
        raise InputError(f"gain {error}") from None
    try:
        shape = torch.broadcast_shapes(batch_shape, value.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise InputError(
            f"gain has shape {tuple(value.shape)}, and the inputs {listed(hypernet.inputs)} have "
            f"batch shape {tuple(batch_shape)}; expected shapes that broadcast, such as (8,) and "
            "(8,), or () and (8,)."
        ) from None
    return value.expand(shape)


def _keywords_of(primary: nn.Module) -> list[str]:
    """The arguments of the primary's forward that can be passed by name."""
    own = [
        parameter.name
        for parameter in arguments_of(primary).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    if isinstance(primary, HyperNet):
        own.extend(primary.inputs)
    return own


def _refuse_clashes(primary: nn.Module, inputs: Mapping[str, Input]) -> None:
    own = _keywords_of(primary)
    for name in inputs:
        if name in own:
            raise ConfigurationError(
                f"Hypernetwork input {name!r} has the name of an argument of "
                f"{type(primary).__name__}.forward({', '.join(own)}): model(x, {name}=...) could "
                f"mean either. Rename the input, for instance to 'hyper_{name}'."
            )


def hypernetize(
    primary: N,
    inputs: Mapping[str, Input],
    targets: Targets = None,
    *,
    hidden: Hidden = "auto",
    directions: Directions = "auto",
    activation: Activation = "leaky_relu",
    encoding: Encode = CosSin(),
    residual: bool = True,
    head: Head | Mapping[str, Head] = Dense(),
    init: Init = "auto",
    skip: bool = False,
    trunk: OwnTrunk | None = None,
    calibrate_on: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> HyperModel[N]:
    r"""Turn a network into a hypernetwork model: its weights become functions of ``inputs``.

    The defaults are the Magnitude Invariant Parametrization (MIP, section 4 of the paper,
    arXiv:2304.07645), :math:`\theta = \theta^0 + h(E_{L2}(\gamma); \omega)`, with the encoding of
    all inputs together brought to norm 1 and ``init="relative"``. Its two parts are two switches.
    Nothing else differs between their settings: the number of parameters, the random draws and
    the cost are the same.

    ================== =================== ==========================================
    ``encoding``       ``residual``        formulation
    ================== =================== ==========================================
    ``CosSin()``       ``True``            MIP
    ``None``           ``False``           classical, :math:`\theta = h(\gamma; \omega)`
    ``CosSin()``       ``False``           input encoding alone (paper, figure 5b)
    ``None``           ``True``            output encoding alone (paper, figure 5b)
    ================== =================== ==========================================

    Args:
        primary: any :class:`torch.nn.Module`, pretrained or not. It is not copied: it becomes
            ``model.primary``, and its parameters are :math:`\theta^0`, which training changes. To
            keep yours, pass a copy; to freeze :math:`\theta^0`, freeze them. Only with
            ``residual=False`` does the model work on a deep copy, in which the predicted parameters
            start at zero: there they are the bias of the hypernetwork's last layer.
        inputs: the space of each input, by name. The names become keyword
            arguments of the model's forward.
        targets: the parameters to predict: globs over names, module classes, a function of
            ``(name, parameter)``, or several of these. ``None`` is all but those of
            normalisation layers (paper, section A.2).
        hidden: the widths of the hypernetwork's hidden layers; ``"auto"`` is (64, 128). The paper
            has (16, 128).
        directions: how many directions the predicted weights can move in, which is how many
            weights a :class:`~hyperlight.Dense` head holds for every predicted one. ``"auto"``
            goes by the inputs if ``hidden`` is ``"auto"``: 16 for one or two scalars. ``None``
            lets the head read the last hidden layer itself, as in the paper.
        activation: of the hidden layers: a name, a module or a class of one.
        encoding: what the inputs are mapped to; ``None`` leaves them as they are. Or several by
            glob over inputs: ``{"level": hl.CosSin(), "*": None}``.
        residual: whether predictions are changes to the primary's parameters.
        head: the hypernetwork's last layer: :class:`~hyperlight.Dense`,
            :class:`~hyperlight.LowRank`, :class:`~hyperlight.PerLayer`,
            :class:`~hyperlight.ChannelScale`, :class:`~hyperlight.Chunked`, one of your own, or
            several by glob over names: ``{"*attn*": hl.LowRank(8), "*": hl.Dense()}``.
        init: how the head starts: ``"relative"`` or ``hl.Relative(0.1)`` (the change has that
            fraction of each tensor's root mean square), ``"fan_out"`` (paper, section 5.2, with
            predicted biases at zero), ``"zero"`` (the model starts as the primary, bit for bit),
            ``"hyperfan_in"`` or ``"hyperfan_out"`` (Chang et al. 2020), or a function of a
            tensor's name and shape.
            ``"auto"`` is ``"relative"``, or ``"fan_out"`` if there is no scale to measure
            (``residual=False``, or a primary on the meta device) or a head of your own has no
            :meth:`~hyperlight.Head.calibrate`.
        skip: residual connections between the hidden layers.
        trunk: hidden layers of your own, in place of ``hidden``, ``activation`` and ``skip``: a
            module from ``(B, encoded)`` to ``(B, K)``, or a function that makes one for the size
            ``encoded``. It is used as it is, and starts as you made it.
        calibrate_on: values from your data by input, ``(N,) + event_shape``; a hundred are enough.
            Give them for every :class:`~hyperlight.Encoded` input, whose module they are centred
            and scaled with, and for a :class:`~hyperlight.Vector` to have its location and scale
            measured.
        dtype: of the hypernetwork; the default is that of the predicted parameters.
        device: of the hypernetwork; the default is that of the predicted parameters. On
            ``"meta"`` nothing is allocated, and :meth:`HyperModel.summary` gives the sizes.
        generator: draws the hypernetwork's initial weights.

    Returns:
        The model. Train all of ``model.parameters()``.

    Raises:
        ConfigurationError: a setting cannot be built.
        TargetError: ``targets`` does not fit the primary.
        BindError: the primary holds references that cannot be followed.

    Warns:
        UserWarning: an :class:`~hyperlight.Encoded` input has no examples, so that it may hardly
            change the weights at first.

    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> model = hl.hypernetize(net, inputs={"scale": hl.Uniform(0.0, 0.5)})
    >>> model(torch.zeros(4, 8), scale=0.3).shape
    torch.Size([4, 2])
    >>> list(model.predict(scale=0.3)) == [name for name, _ in net.named_parameters()]
    True
    """
    chosen = select(primary, targets)
    head = find_head(head)
    if isinstance(init, str) and init == "auto":
        measurable = (
            residual and head.calibrates and not any(t.device.type == "meta" for t in chosen)
        )
        init = "relative" if measurable else "fan_out"
    if not residual and not head.stands_alone:
        raise ConfigurationError(
            "residual=False starts theta0 at zero, where a head that multiplies it (ChannelScale) "
            "can change nothing. Use residual=True, or another head."
        )
    head.fit(primary, chosen)
    fitted = find_init(init).fit(primary, chosen)
    if not residual:
        if isinstance(fitted, Zero):
            raise ConfigurationError(
                "init='zero' with residual=False makes every predicted weight zero, from where "
                "nothing can train. Use init='fan_out', or residual=True."
            )
        primary = _zeroed(primary, [target.name for target in chosen])
    if dtype is None:
        dtype = chosen[0].dtype
        for target in chosen[1:]:
            dtype = torch.promote_types(dtype, target.dtype)
    if device is None:
        devices = {target.device for target in chosen}
        if len(devices) > 1:
            raise ConfigurationError(
                f"The parameters to predict are on several devices "
                f"({listed(sorted(str(d) for d in devices))}); expected one. Move the primary to "
                "one device, or predict a part of it with targets=..."
            )
        (device,) = devices
    hypernet = HyperNet(
        inputs,
        {target.name: target.shape for target in chosen},
        hidden=hidden,
        directions=directions,
        activation=activation,
        encoding=encoding,
        head=head,
        init=fitted,
        skip=skip,
        trunk=trunk,
        calibrate_on=calibrate_on,
        dtype=dtype,
        device=device,
        generator=generator,
    )
    without = [
        n for n, s in hypernet.inputs.items() if isinstance(s, Encoded) and s.examples is None
    ]
    if without and hypernet.device.type != "meta":
        warnings.warn(
            f"Nothing is known of the values of {listed(without)}. What a network gives for them "
            "may hardly differ, and then they hardly change the weights at first. Pass some of "
            f"your data: calibrate_on={{{without[0]!r}: batch}}. hl.scale_profile measures it.",
            stacklevel=2,
        )
    return HyperModel(primary, hypernet)


def _zeroed(primary: N, names: Sequence[str]) -> N:
    copied = _copied(primary, "residual=False works on a deep copy of the primary")
    with torch.no_grad():
        for name in names:
            copied.get_parameter(name).zero_()
    return copied


def _copied(primary: N, why: str) -> N:
    try:
        return copy.deepcopy(primary)
    except Exception as error:
        raise ConfigurationError(
            f"{why}, and {type(primary).__name__} cannot be copied: {error}"
        ) from error
