"""Training with rare communication: outer optimizers and loops over the public API."""

from ringhaul.diloco.delayed import DelayedDiLoCo
from ringhaul.diloco.outer import SGD, AdamW, OuterOptimizer, make_optimizer, nesterov
from ringhaul.diloco.parameters import ParameterStore, strided_fragments
from ringhaul.diloco.results import RoundInfo
from ringhaul.diloco.streaming import StreamingDiLoCo
from ringhaul.diloco.sync import DiLoCo

__all__ = [
    "SGD",
    "AdamW",
    "DelayedDiLoCo",
    "DiLoCo",
    "OuterOptimizer",
    "ParameterStore",
    "RoundInfo",
    "StreamingDiLoCo",
    "make_optimizer",
    "nesterov",
    "strided_fragments",
]
