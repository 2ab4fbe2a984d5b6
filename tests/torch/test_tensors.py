"""All-reduce of tensors over real peers."""

from collections.abc import Iterator
from typing import Any

import pytest

from ringhaul import CodecError, Communicator, RinghaulError, connect
from ringhaul.testing.threads import Cluster, together

torch = pytest.importorskip("torch")

import ringhaul.torch as ringhaul_torch  # noqa: E402 - needs torch


@pytest.fixture
def cluster() -> Iterator[Cluster[Communicator]]:
    with Cluster(lambda address: connect(address, min_world_size=2)) as cluster:
        yield cluster


def test_one_tensor_a_list_and_what_is_not_contiguous(cluster: Cluster[Communicator]) -> None:
    def reduce(comm: Communicator) -> list[list[float]]:
        one = torch.full((3,), 1.0 + comm.rank)
        many = [torch.ones(2, dtype=torch.bfloat16), torch.arange(6.0).view(2, 3).t()]
        infos = ringhaul_torch.all_reduce(comm, one)
        assert [info.world_size for info in infos] == [2]
        assert len(ringhaul_torch.all_reduce(comm, many, "avg")) == 2
        return [one.tolist(), many[0].tolist(), many[1].flatten().tolist()]

    for ends in together(cluster.drivers(2), reduce):
        assert ends == [[3.0] * 3, [1.0] * 2, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]]


class Partial:
    """Doubles all but the last, as two peers of which one has NaN there."""

    def all_reduce_many(self, hosts: list[Any], *_: object, **__: object) -> None:
        for host in hosts:
            host.mul_(2.0)
        hosts[-1].fill_(7.0)  # nobody may read it
        error = CodecError("unfit")
        error.infos = [*["reduced"] * (len(hosts) - 1), None]
        raise error


def test_after_an_error_what_is_reduced_is_written_wherever_it_lies() -> None:
    transposed, plain, spoilt = torch.ones(3, 4).t(), torch.ones(4), torch.ones(5, 2).t()
    comm: Any = Partial()
    with pytest.raises(CodecError):
        ringhaul_torch.all_reduce(comm, [transposed, plain, spoilt])

    assert transposed.unique().tolist() == plain.unique().tolist() == [2.0]
    assert spoilt.unique().tolist() == [1.0]


class NeverAsked:
    """A communicator that nothing may reach."""

    def all_reduce_many(self, *_: object, **__: object) -> None:
        raise AssertionError("it was sent")


def test_what_cannot_be_written_is_refused_before_anything_is_sent() -> None:
    comm: Any = NeverAsked()
    with pytest.raises(ValueError, match="share memory"):
        ringhaul_torch.all_reduce(comm, [torch.ones(2), torch.ones(1).expand(4)])
    nothing: Any = None
    with pytest.raises(TypeError, match="not a NoneType"):
        ringhaul_torch.all_reduce(comm, [torch.ones(2), nothing])


def test_an_error_without_infos_writes_nothing() -> None:
    class Closed:
        def all_reduce_many(self, hosts: list[Any], *_: object, **__: object) -> None:
            for host in hosts:
                host.fill_(7.0)
            raise RinghaulError("closed")

    transposed = torch.ones(3, 4).t()
    comm: Any = Closed()
    with pytest.raises(RinghaulError, match="closed"):
        ringhaul_torch.all_reduce(comm, transposed)

    assert transposed.unique().tolist() == [1.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_tensors_on_cuda(cluster: Cluster[Communicator]) -> None:
    def reduce(comm: Communicator) -> list[list[float]]:
        tensors = [torch.full((n,), 1.0 + comm.rank, device="cuda") for n in (1, 1000)]
        ringhaul_torch.all_reduce(comm, tensors)
        return [tensor.cpu().unique().tolist() for tensor in tensors]

    assert together(cluster.drivers(2), reduce) == [[[3.0], [3.0]]] * 2
