"""Plain data-parallel training: a communication hook for `DistributedDataParallel`.

Decides when the averages of DDP's buckets begin and end. Each is begun when its gradients are
there, and all are waited for when the last one is: they overlap with the backward pass.
"""

from typing import Any

import torch
from ringhaul.communicator import Communicator
from ringhaul.errors import RinghaulError
from ringhaul.quant import Codec
from ringhaul.work import Work


class GradientAverager:
    """Averages gradients over the members of a communicator, from within DDP.

        ddp = DistributedDataParallel(model, process_group=of_this_peer_alone,
                                      find_unused_parameters=True)
        averager = ringhaul.torch.GradientAverager(comm)
        ddp.register_comm_hook(averager, ringhaul.torch.gradient_hook)

    DDP needs a process group; give it one of this peer alone (or of the GPUs of this machine,
    whose gradients are then averaged first). `find_unused_parameters` keeps DDP from cutting
    its buckets anew after the first pass, which newcomers would do at another time than members.

    All members make the same backward passes. A lost member costs its gradients. Newcomers are
    let in by `admit`, between passes, and have to be given parameters and the optimizer's
    state by `sync_state`; where peers come often, `DiLoCo` does all that. A pass that fails on
    this peer alone, with some of its buckets on their way, cannot be made again: the others have
    those, and wait for the rest. The next pass raises; close the communicator, and connect anew.

    Args:
        comm: where the gradients travel.
        codec: of the gradients, as `Communicator.all_reduce` takes it.
        timeout_s: for each bucket.

    Attributes:
        error: of the newest backward pass, None if it went well. DDP raises a RuntimeError with
            its text, and the gradients are not to be used.
        sent_bytes: by this peer, in all passes.
    """

    def __init__(
        self, comm: Communicator, *, codec: str | Codec = "raw", timeout_s: float | None = None
    ) -> None:
        self.error: RinghaulError | None = None
        self.sent_bytes = 0
        self._comm = comm
        self._codec = codec
        self._timeout_s = timeout_s
        #: Of the pass under way: the bucket, its host memory, its average, what DDP waits for.
        self._under_way: list[tuple[torch.Tensor, torch.Tensor, Work, Any]] = []

    def begin(self, bucket: Any) -> Any:  # noqa: ANN401 - a torch.distributed.GradBucket
        """Begin to average a bucket; if it is the last one, wait for all. A torch future.

        Raises:
            RinghaulError: the pass before this one did not come to its last bucket.
        """
        if bucket.index() == 0 and self._under_way:  # DDP begins each pass with this one
            self.error = RinghaulError(
                f"the backward pass before failed on this peer after {len(self._under_way)} of its "
                "buckets were sent, and the others wait for the rest: close the communicator, "
                "connect again, sync the parameters, and make another GradientAverager"
            )
            raise self.error
        values = bucket.buffer()
        host = values
        if values.device.type != "cpu":
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            torch.cuda.current_stream(values.device).synchronize()
        work = self._comm.all_reduce_async(
            host, "avg", codec=self._codec, tag=f"ddp/{bucket.index()}", timeout_s=self._timeout_s
        )
        future: Any = torch.futures.Future()
        self._under_way.append((values, host, work, future))
        if bucket.is_last():
            self._finish()
        return future

    def _finish(self) -> None:
        """All are posted: wait for each, tell DDP."""
        under_way, self._under_way = self._under_way, []
        self.error = None
        for values, host, work, future in under_way:
            try:
                self.sent_bytes += work.wait().sent_bytes
            except RinghaulError as error:
                self.error = error
                future.set_exception(error)
                continue
            if host is not values:
                values.copy_(host)
            future.set_result(values)


def gradient_hook(
    averager: GradientAverager, bucket: torch.distributed.GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """What `register_comm_hook` takes, with a `GradientAverager` as its state."""
    return averager.begin(bucket)
