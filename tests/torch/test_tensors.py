"""All-reduce of tensors over real peers."""

from collections.abc import Iterator

import pytest

from ringhaul import Communicator, connect
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_tensors_on_cuda(cluster: Cluster[Communicator]) -> None:
    def reduce(comm: Communicator) -> list[list[float]]:
        tensors = [torch.full((n,), 1.0 + comm.rank, device="cuda") for n in (1, 1000)]
        ringhaul_torch.all_reduce(comm, tensors)
        return [tensor.cpu().unique().tolist() for tensor in tensors]

    assert together(cluster.drivers(2), reduce) == [[[3.0], [3.0]]] * 2
