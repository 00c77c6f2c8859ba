"""The signature of a model: the primary's arguments, with the inputs among the keywords.

Trainers and exporters read it with :func:`inspect.signature`, to choose the columns of a data set
or to name the inputs of a graph.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable
from inspect import Parameter, Signature
from typing import Any

from torch import nn

from ._torch import never_compile_alone


def arguments_of(primary: nn.Module) -> Signature:
    """The signature of the primary's forward; any arguments if it is not written in Python."""
    try:
        return inspect.signature(primary.forward)
    except (TypeError, ValueError):
        kinds = {"args": Parameter.VAR_POSITIONAL, "kwargs": Parameter.VAR_KEYWORD}
        return Signature([Parameter(*pair) for pair in kinds.items()])


def with_keywords(signature: Signature, added: Iterable[Parameter]) -> Signature:
    """The signature with keyword-only parameters in front of ``**kwargs``, where they must stand.

    A parameter of its own that cannot be passed by name, such as ``*args``, leaves its name to an
    added one.
    """
    new = {parameter.name: parameter for parameter in added}
    own = [p.replace(name=p.name + "_") if p.name in new else p for p in _own(signature)]
    first = [parameter for parameter in own if parameter.kind is not Parameter.VAR_KEYWORD]
    last = [parameter for parameter in own if parameter.kind is Parameter.VAR_KEYWORD]
    return signature.replace(parameters=[*first, *new.values(), *last])


def keyword(name: str, default: Any = Parameter.empty) -> Parameter:
    """A parameter that is passed by keyword alone."""
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default)


def _own(signature: Signature) -> Iterable[Parameter]:
    return signature.parameters.values()


class SignedMethod:
    """A method whose signature differs between instances.

    :func:`inspect.signature` reads it from the function behind a method, which all instances
    share. So an instance may hold a copy of that function, in ``__dict__["_signed"]``. A call
    costs what it did.
    """

    def __init__(self, function: Any) -> None:
        self.function = function

    @never_compile_alone
    def __get__(self, instance: Any, owner: type | None = None) -> Callable[..., Any]:
        if instance is None:
            return self.function  # type: ignore[no-any-return]
        function = instance.__dict__.get("_signed", self.function)
        # Unlike types.MethodType, torch.compile can follow this.
        return function.__get__(instance, owner)  # type: ignore[no-any-return]

    def signed(self, signature: Signature) -> Callable[..., Any]:
        """A copy of the function whose bound method has that signature."""
        copied: Any = types.FunctionType(self.function.__code__, self.function.__globals__)
        parameters = [Parameter("self", Parameter.POSITIONAL_ONLY), *_own(signature)]
        copied.__signature__ = signature.replace(parameters=parameters)
        return copied  # type: ignore[no-any-return]


class SignatureOfForward:
    """``__signature__`` of a module: that of its ``forward``."""

    def __get__(self, instance: Any, owner: type | None = None) -> Signature:
        if instance is None:  # the class has that of its constructor
            raise AttributeError("__signature__")
        return inspect.signature(instance.forward)
