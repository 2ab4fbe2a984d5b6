"""A peer whose pseudo-gradient no codec can carry gives nothing; the run goes on."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul import Communicator, connect
from ringhaul.diloco import SGD, DelayedDiLoCo, DiLoCo, RoundInfo, StreamingDiLoCo
from ringhaul.diloco.loop import OuterLoop
from ringhaul.errors import CodecError
from ringhaul.testing.meetings import MeetingComm, MeetingGroup
from ringhaul.testing.threads import Cluster

Array = NDArray[np.floating]
Make = Callable[[Communicator, dict[str, Array]], OuterLoop]
LOOPS: dict[str, Make] = {
    "sync": lambda comm, p: DiLoCo(comm, p, 1, optimizer=SGD(0.5), codec="fp16"),
    "delayed": lambda comm, p: DelayedDiLoCo(comm, p, 1, optimizer=SGD(0.5), codec="fp16"),
    "eager": lambda comm, p: DelayedDiLoCo(
        comm, p, 1, optimizer=SGD(0.5, momentum=0.5), eager=True, codec="fp16"
    ),
    "streaming": lambda comm, p: StreamingDiLoCo(
        comm, p, 1, fragments=1, optimizer=SGD(0.5), codec="fp16"
    ),
    "streaming late": lambda comm, p: StreamingDiLoCo(
        comm, p, 2, fragments=1, overlap=1, optimizer=SGD(0.5), codec="fp16"
    ),
}


@pytest.fixture
def cluster() -> Iterator[Cluster[Communicator]]:
    with Cluster(lambda address: connect(address, min_world_size=2)) as cluster:
        yield cluster


@pytest.mark.parametrize("loop", LOOPS)
def test_who_moved_farther_than_the_codec_carries_gives_nothing_once(
    loop: str, cluster: Cluster[Communicator], caplog: pytest.LogCaptureFixture
) -> None:
    def run(name: str) -> Callable[[Communicator], tuple[list[RoundInfo], list[float]]]:
        def train(comm: Communicator) -> tuple[list[RoundInfo], list[float]]:
            params: dict[str, Array] = {"w": np.ones(4, np.float32)}
            outer = LOOPS[loop](comm, params)
            infos = []
            for number in range(8):
                params["w"] -= np.float32(1e6 if (name, number) == ("far", 3) else 1.0)
                info = outer.step()
                infos += [] if info is None else [info]
            outer.finish()
            return infos, params["w"].tolist()

        return train

    near, far = (
        driver.begin(run(name))
        for driver, name in zip(cluster.drivers(2), ("near", "far"), strict=True)
    )
    (near_infos, near_end), (far_infos, far_end) = near.result(60), far.result(60)

    assert [info.rejected for info in far_infos].count(True) == 1
    assert not any(info.rejected for info in near_infos)
    assert {info.counted for info in near_infos if info.contributors} == {1, 2}
    assert near_end == far_end
    assert -20.0 < near_end[0] < 0.0
    assert 'codec "fp16" cannot carry' in caplog.text


def test_the_same_error_twice_is_raised() -> None:
    """Nobody is left who could give less."""
    group = MeetingGroup(["a"])
    outer = DiLoCo(MeetingComm(group, "a"), {"w": np.ones(1, np.float32)}, 1)
    group.failures["reduce/0"] = [CodecError("unfit", peers=["a"]) for _ in range(2)]

    with pytest.raises(CodecError):
        outer.step()
    assert not group.failures["reduce/0"]
    info = outer.step()

    assert info is not None
    assert (info.rejected, info.counted, info.round) == (True, 0, 0)


def test_an_error_that_names_nobody_is_raised() -> None:
    group = MeetingGroup(["a"])
    outer = DiLoCo(MeetingComm(group, "a"), {"w": np.ones(1, np.float32)}, 1)
    group.failures["reduce/0"] = [CodecError("unfit")]

    with pytest.raises(CodecError):
        outer.step()
