"""The communication hook of DDP, over real peers."""

from collections.abc import Iterator
from typing import Any

import pytest

from ringhaul import CallTimeout, Communicator, RinghaulError, connect
from ringhaul.testing.threads import Cluster, together

torch = pytest.importorskip("torch")

import ringhaul.torch as ringhaul_torch  # noqa: E402 - needs torch

distributed = torch.distributed


@pytest.fixture(scope="module")
def alone() -> Iterator[Any]:
    """A process group of one, without any environment variable."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.group.WORLD
    distributed.destroy_process_group()


@pytest.fixture
def cluster() -> Iterator[Cluster[Communicator]]:
    with Cluster(lambda address: connect(address, min_world_size=2)) as cluster:
        yield cluster


def wrapped(comm: Communicator, group: object, **options: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """A model of several buckets."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(300, 300) for _ in range(3)))
    ddp = torch.nn.parallel.DistributedDataParallel(
        model, process_group=group, find_unused_parameters=True, bucket_cap_mb=0.2
    )
    averager = ringhaul_torch.GradientAverager(comm, **options)
    ddp.register_comm_hook(averager, ringhaul_torch.gradient_hook)
    return ddp, averager


def test_gradients_are_averaged_in_every_backward_pass(
    cluster: Cluster[Communicator], alone: object
) -> None:
    drivers = cluster.drivers(2)
    models = [wrapped(driver.comm, alone) for driver in drivers]  # one at a time: torch's seeds
    inputs = torch.randn(2, 4, 300)

    def train(comm: Communicator) -> list[Any]:
        ddp, averager = models[[driver.comm for driver in drivers].index(comm)]
        for _ in range(3):
            ddp.zero_grad()
            ddp(inputs[comm.rank]).square().mean().backward()
        assert averager.sent_bytes > 3 * 4 * 270_000
        return [parameter.grad for parameter in ddp.parameters()]

    ends = together(drivers, train)

    reference, _ = models[0]
    expected = torch.autograd.grad(
        reference.module(inputs.flatten(0, 1)).square().mean(), list(reference.parameters())
    )
    for mine, theirs, wanted in zip(*ends, expected, strict=True):
        assert torch.equal(mine, theirs)
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-7)


def test_an_error_ends_the_backward_pass(cluster: Cluster[Communicator], alone: object) -> None:
    first, second = cluster.drivers(2)
    ddp, averager = wrapped(first.comm, alone, timeout_s=0.2)

    def train(comm: Communicator) -> None:
        with pytest.raises(RuntimeError, match=r"0\.2 s"):
            ddp(torch.ones(1, 300)).sum().backward()

    first.do(train)

    assert isinstance(averager.error, CallTimeout)
    assert second.comm.world_size == 2


class Bucket:
    """As DDP's."""

    def __init__(self, index: int, *, is_last: bool) -> None:
        self._index = index
        self._is_last = is_last
        self._values = torch.ones(3)

    def index(self) -> int:
        return self._index

    def is_last(self) -> bool:
        return self._is_last

    def buffer(self) -> Any:  # noqa: ANN401
        return self._values


class Alone:
    """A communicator of one: all is done at once."""

    sent_bytes = 0

    def __init__(self) -> None:
        self.tags: list[str] = []

    def all_reduce_async(self, array: object, op: str, *, tag: str, **_: object) -> "Alone":
        self.tags.append(tag)
        return self

    def wait(self) -> "Alone":
        return self


def test_after_a_pass_that_failed_half_way_the_next_one_says_so_and_sends_nothing() -> None:
    comm: Any = Alone()
    averager = ringhaul_torch.GradientAverager(comm)
    for _ in range(2):
        for index in range(2):
            averager.begin(Bucket(index, is_last=index == 1))
    averager.begin(Bucket(0, is_last=False))  # and then the program raised, in a layer before
    sent = list(comm.tags)

    for _ in range(2):
        with pytest.raises(RinghaulError, match="failed on this peer after 1 of its"):
            averager.begin(Bucket(0, is_last=False))
    assert isinstance(averager.error, RinghaulError)
    assert comm.tags == sent == ["ddp/0", "ddp/1"] * 2 + ["ddp/0"]
