"""The communication hook of DDP, over real peers."""

from collections.abc import Iterator
from typing import Any

import pytest

from ringhaul import CallTimeout, Communicator, connect
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
