"""All-reduce of tensors on any device, one or a list of them."""

from collections.abc import Iterable
from itertools import compress

import torch
from ringhaul.communicator import Communicator
from ringhaul.errors import RinghaulError
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
        tensors: written when all are reduced; after an error those that `infos` of it names are,
            as by `all_reduce_many`. After an interrupt, those that are copied are as before.
        op: as for `Communicator.all_reduce`.
        codec: as there.
        timeout_s: for the whole call.

    Returns:
        For each tensor how it was committed.

    Raises:
        TypeError: something is no tensor.
        ValueError: elements of a tensor share memory (`expand`), so that it cannot be written.
        RinghaulError: as `Communicator.all_reduce_many`.
    """
    given = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
    for tensor in given:
        _check(tensor)
    hosts = [_to_host(tensor.detach()) for tensor in given]
    _wait_devices(given)
    try:
        infos = comm.all_reduce_many(hosts, op, codec=codec, timeout_s=timeout_s)
    except RinghaulError as error:
        is_reduced = [info is not None for info in error.infos] or [False] * len(given)
        _copy_back(compress(given, is_reduced), compress(hosts, is_reduced))
        raise
    _copy_back(given, hosts)
    return infos


def _check(tensor: object) -> None:
    """Refuse what could not be written, before anything is sent."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"tensors are torch tensors, not a {type(tensor).__name__}")
    if tensor.layout is torch.strided and any(
        size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    ):
        raise ValueError("elements of a tensor share memory (expand): reduce a clone() of it")


def _copy_back(tensors: Iterable[torch.Tensor], hosts: Iterable[torch.Tensor]) -> None:
    written = []
    for tensor, host in zip(tensors, hosts, strict=True):
        if host.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(host, non_blocking=True)
            written.append(tensor)
    _wait_devices(written)  # the pinned memory goes with this call


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
