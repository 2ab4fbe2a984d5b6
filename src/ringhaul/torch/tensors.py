"""All-reduce of tensors on any device, one or a list of them."""

from collections.abc import Iterable

import torch
from ringhaul.communicator import Communicator
from ringhaul.ids import ReduceOp
from ringhaul.quant import Codec
from ringhaul.results import ReduceInfo


def all_reduce(
    comm: Communicator,
    tensors: torch.Tensor | Iterable[torch.Tensor],
    op: str | ReduceOp = "sum",
    *,
    codec: str | Codec = "raw",
    timeout_s: float | None = None,
) -> list[ReduceInfo]:
    """Reduce one tensor or many over all members, in place; on any device.

    As `Communicator.all_reduce_many`. Contiguous CPU tensors travel from and to their own
    memory. Others are copied: CUDA tensors to pinned memory and back, all copies of a list
    under way together.

    Args:
        comm: every member calls this with tensors of the same number, sizes and dtypes.
        tensors: written when all are reduced; those on CUDA only if no error is raised.
        op: as for `Communicator.all_reduce`.
        codec: as there.
        timeout_s: for the whole call.

    Returns:
        For each tensor how it was committed.

    Raises:
        As `Communicator.all_reduce_many`.
    """
    given = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
    hosts = [_to_host(tensor.detach()) for tensor in given]
    _wait_devices(given)
    infos = comm.all_reduce_many(hosts, op, codec=codec, timeout_s=timeout_s)
    for tensor, host in zip(given, hosts, strict=True):
        if host.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(host, non_blocking=True)
    _wait_devices(given)  # the pinned memory goes with this call
    return infos


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous, on the CPU; the tensor itself if it is."""
    if tensor.device.type == "cpu":
        return tensor.contiguous()
    is_cuda = tensor.device.type == "cuda"
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=is_cuda)
    return host.copy_(tensor, non_blocking=True)


def _wait_devices(tensors: Iterable[torch.Tensor]) -> None:
    """What was copied to or from CUDA devices is there."""
    for device in {tensor.device for tensor in tensors if tensor.device.type == "cuda"}:
        torch.cuda.current_stream(device).synchronize()
