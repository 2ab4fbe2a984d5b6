"""The parameters of a module, on any device and in any floating dtype, as flat host arrays.

Decides what of a module takes part, and how it is copied. Outer parameters are float32 on the
host (float64 if the whole module is); parameters in bfloat16 or float16 are rounded when they
are written. On CUDA the host arrays are pinned, and copies run on a stream of their own, one
after the other without waiting, while dtypes are converted on the device.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

import torch
from ringhaul.diloco.outer import FloatArray
from ringhaul.diloco.parameters import element_count
from torch import nn

#: Before the names of a module's buffers; no attribute of a module begins so.
BUFFER_PREFIX = "buffer:"


class ModuleStore:
    """A `ParameterStore` over a module.

    Takes part: every parameter that requires a gradient, tied ones once; and, if `buffers`,
    every persistent buffer of a floating dtype (running means), which is averaged and not
    stepped along; entries of it that are not finite stay as they are in the run. Counters and
    frozen parameters are each peer's own: they have to be the same from the beginning.

    Args:
        module: its tensors stay where they are; they are changed in place. No parameter may be
            replaced later (`load_state_dict(assign=True)`, `m.weight = nn.Parameter(...)`), and
            none converted (`module.half()`) or moved to a CUDA device: the next copy refuses
            it. Buffers may be replaced, by some of the same shape and dtype.
        buffers: average floating buffers too.

    Raises:
        ValueError: nothing requires a gradient.
        TypeError: `module` is none; a parameter is complex, sparse, or sharded (use its local
            shard).
    """

    def __init__(self, module: nn.Module, *, buffers: bool = True) -> None:
        if not isinstance(module, nn.Module):
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            raise TypeError(f"model is a torch.nn.Module, not a {kind}")
        self._module = module
        self._tensors: dict[str, torch.Tensor] = {
            name: parameter
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        if not self._tensors:
            raise ValueError("no parameter of the module requires a gradient")
        if buffers:
            self._tensors.update(_floating_buffers(module))
        for name, tensor in self._tensors.items():
            if not tensor.is_floating_point() or tensor.layout is not torch.strided:
                raise TypeError(f"{name!r} is {tensor.dtype}, {tensor.layout}: not a dense float")
            if hasattr(tensor, "to_local"):
                raise TypeError(f"{name!r} is sharded: pass the local shards as arrays")
        self._dtypes = {name: tensor.dtype for name, tensor in self._tensors.items()}
        dtypes = set(self._dtypes.values())
        is_double = dtypes == {torch.float64}
        self._dtype: np.dtype[np.floating] = np.dtype(np.float64 if is_double else np.float32)
        self._host = torch.float64 if is_double else torch.float32
        self._is_rounding = any(dtype not in (self._host, torch.float64) for dtype in dtypes)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self._averaged = frozenset(n for n in self._tensors if n.startswith(BUFFER_PREFIX))
        self._devices = {t.device for t in self._tensors.values() if t.device.type == "cuda"}
        #: A stream for the copies of each device.
        self._streams = {device: torch.cuda.Stream(device) for device in self._devices}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of parameters, and of buffers under `buffer:NAME`."""
        return self._shapes

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """float32, or float64 if every tensor is."""
        return self._dtype

    @property
    def averaged(self) -> frozenset[str]:
        """The buffers."""
        return self._averaged

    @property
    def is_rounding(self) -> bool:
        """Is a parameter bfloat16 or float16?"""
        return self._is_rounding

    def allocate(self, count: int) -> FloatArray:
        """Zeros; pinned if anything is on CUDA. The array keeps the memory alive."""
        memory = torch.zeros(count, dtype=self._host, pin_memory=bool(self._devices))
        array: FloatArray = memory.numpy()
        return array

    def flush(self) -> None:
        """Wait for copies to devices."""
        for stream in self._streams.values():
            stream.synchronize()

    def round(self, names: Sequence[str], values: FloatArray) -> None:
        """To the dtype of each parameter and back."""
        for tensor, part in self._parts(names, values):
            if tensor.dtype is not self._host:
                part.copy_(part.to(tensor.dtype))

    def read(self, names: Sequence[str], into: FloatArray) -> None:
        """Copy them to the host; waits for what the current streams compute."""
        with torch.no_grad():
            self._read(names, into)

    def _read(self, names: Sequence[str], into: FloatArray) -> None:
        self._begin_copies()
        for tensor, part in self._parts(names, into):
            if tensor.device.type == "cuda":
                with torch.cuda.stream(self._streams[tensor.device]):
                    part.copy_(tensor.to(self._host), non_blocking=True)
            else:
                part.copy_(tensor)
        self.flush()

    def write(self, names: Sequence[str], values: FloatArray) -> None:
        """Copy them from the host. What is computed later on the current streams sees them.

        On CUDA `values` are still being read when this returns, until `flush`.
        """
        with torch.no_grad():
            self._write(names, values)

    def _write(self, names: Sequence[str], values: FloatArray) -> None:
        self._begin_copies()
        for tensor, part in self._parts(names, values):
            if tensor.device.type == "cuda":
                with torch.cuda.stream(self._streams[tensor.device]):
                    # as host dtype to the device, where it is converted
                    tensor.copy_(part.to(tensor.device, non_blocking=True))
            else:
                tensor.copy_(part)
        for device, stream in self._streams.items():
            torch.cuda.current_stream(device).wait_stream(stream)

    def _begin_copies(self) -> None:
        """Copies come after what the current streams compute, and after earlier copies."""
        self.flush()
        for device, stream in self._streams.items():
            stream.wait_stream(torch.cuda.current_stream(device))

    def _parts(
        self, names: Sequence[str], flat: FloatArray
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        host = torch.from_numpy(flat)
        present: dict[str, torch.Tensor] = dict(self._module.named_parameters())
        if self._averaged:
            named = self._module.named_buffers()
            present.update((BUFFER_PREFIX + name, buffer) for name, buffer in named)
        start = 0
        for name in names:
            shape = self._shapes[name]
            tensor = self._checked(name, present.get(name))
            stop = start + element_count(shape)
            yield tensor.detach(), host[start:stop].view(shape)
            start = stop

    def _checked(self, name: str, present: torch.Tensor | None) -> torch.Tensor:
        """The tensor, if it still is what the run is about and what the module computes with."""
        tensor, shape, dtype = self._tensors[name], self._shapes[name], self._dtypes[name]
        if present is None or not (present is tensor or name in self._averaged):
            raise ValueError(
                f"{name!r} was replaced after the loop was made, which knows the old tensor only, "
                "as the optimizer does: copy values into it in place, or make both anew"
            )
        if present.dtype is not dtype:
            raise TypeError(f"{name!r} became {present.dtype}; the run has {dtype}")
        if tuple(present.shape) != shape:
            raise ValueError(f"{name!r} became {tuple(present.shape)}; the run has {shape}")
        if present.device.type == "cuda" and present.device not in self._streams:
            raise ValueError(f"{name!r} was moved to {present.device} after the loop was made")
        return present


def _floating_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Persistent buffers of floating dtypes, by name, shared ones once."""
    kept = module.state_dict(keep_vars=True)
    return {
        BUFFER_PREFIX + name: buffer
        for name, buffer in module.named_buffers()
        if buffer.is_floating_point() and name in kept
    }
