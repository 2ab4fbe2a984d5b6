"""PyTorch: the training loops for a module and its optimizer, tensors, gradients of a module.

`pip install 'ringhaul[torch]'`. Nothing else of ringhaul imports this package.
"""

try:
    import torch as _torch  # noqa: F401 - only to say what to do if it is not there
except ImportError as error:  # pragma: no cover - needs an environment without it
    raise ImportError("ringhaul.torch needs PyTorch: pip install 'ringhaul[torch]'") from error

from ringhaul.torch.gradients import GradientAverager, gradient_hook
from ringhaul.torch.loops import DelayedDiLoCo, DiLoCo, StreamingDiLoCo
from ringhaul.torch.store import ModuleStore
from ringhaul.torch.tensors import all_reduce

__all__ = [
    "DelayedDiLoCo",
    "DiLoCo",
    "GradientAverager",
    "ModuleStore",
    "StreamingDiLoCo",
    "all_reduce",
    "gradient_hook",
]
