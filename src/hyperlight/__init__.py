"""HyperLight: train one PyTorch network for every value of a knob.

The runnable form of "Magnitude Invariant Parametrizations Improve Hypernetwork Learning"
(Gonzalez Ortiz, Guttag, Dalca, arXiv:2304.07645). Start with :func:`hypernetize`.
"""

from . import io, optim, testing
from ._version import __version__ as __version__
from .bind import bind
from .diagnostics import (
    GradientProfile,
    ScaleProfile,
    direction_profile,
    gradient_profile,
    scale_profile,
)
from .directions import DirectionProfile
from .encoded import Encoded
from .encodings import CosSin, Encoding, Identity
from .errors import (
    BindError,
    ConfigurationError,
    FormatError,
    HyperLightError,
    InputError,
    MemoryLimitError,
    MissingExtraError,
    ObjectiveError,
    TargetError,
    TransferError,
)
from .explore import Page, explore
from .groups import parameter_groups
from .heads import ChannelScale, Chunked, Dense, Head, LowRank, PerLayer
from .hypernet import HyperNet
from .init import Initialization, Relative
from .inputs import Categorical, Input, LogUniform, Normal, Simplex, Uniform, Vector
from .io import load, save
from .many import PerSample, Shared
from .model import HyperModel, hypernetize
from .onnx import export_onnx
from .optim import FactorExchange, exchange_factors
from .regularizer import OutputRegularizer
from .summary import Summary
from .tune import Tuned, tune

__all__ = [
    # one call
    "hypernetize",
    "HyperModel",
    "HyperNet",
    "PerSample",
    "Shared",
    # inputs and the spaces they live in
    "Input",
    "Uniform",
    "LogUniform",
    "Normal",
    "Vector",
    "Categorical",
    "Simplex",
    "Encoded",
    # encodings
    "Encoding",
    "CosSin",
    "Identity",
    # heads
    "Head",
    "Dense",
    "LowRank",
    "PerLayer",
    "ChannelScale",
    "Chunked",
    # initialisation
    "Initialization",
    "Relative",
    # predicted tensors in place of parameters
    "bind",
    # files
    "save",
    "load",
    "export_onnx",
    "io",
    # for the training loop
    "optim",
    "parameter_groups",
    "exchange_factors",
    "FactorExchange",
    "OutputRegularizer",
    # after training: the best inputs
    "tune",
    "Tuned",
    # a page with sliders
    "explore",
    "Page",
    # diagnosis
    "scale_profile",
    "ScaleProfile",
    "gradient_profile",
    "GradientProfile",
    "direction_profile",
    "DirectionProfile",
    # sizes
    "Summary",
    # checks for parts of one's own
    "testing",
    # errors
    "HyperLightError",
    "ConfigurationError",
    "MemoryLimitError",
    "InputError",
    "TargetError",
    "BindError",
    "FormatError",
    "ObjectiveError",
    "TransferError",
    "MissingExtraError",
]
