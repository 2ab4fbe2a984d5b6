"""Streaming DiLoCo by hand: which fragment moves when, and what a newcomer has of it."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul.diloco import SGD, RoundInfo, StreamingDiLoCo, strided_fragments
from ringhaul.errors import CollectiveAborted
from ringhaul.testing.meetings import MeetingComm, MeetingGroup, meet, without_tallies

Array = NDArray[np.floating]
NAMES = ("w0", "w1")


def params_at(value: float) -> dict[str, Array]:
    return {name: np.array([value], np.float32) for name in NAMES}


class Peer:
    """Two fragments of one parameter each; keeps the outer ones by position."""

    def __init__(
        self,
        group: MeetingGroup,
        name: str,
        *,
        inner_steps: int = 4,
        overlap: int = 0,
        mixing: float = 0.0,
        value: float = 10.0,
        momentum: float = 0.0,
    ) -> None:
        self.params = params_at(value)
        self.outer = StreamingDiLoCo(
            MeetingComm(group, name),
            self.params,
            inner_steps,
            fragments=[[name] for name in NAMES],
            overlap=overlap,
            mixing=mixing,
            optimizer=SGD(1.0, momentum=momentum),
        )
        self.seen: dict[int, bytes] = {}

    def go(self, change: float) -> RoundInfo | None:
        for values in self.params.values():
            values += np.float32(change)
        info = self.outer.step()
        if info is not None:
            arrays = self.outer.state.arrays
            names = [name for name in arrays if name.startswith(("outer", "momentum"))]
            self.seen[info.position] = b"".join(arrays[name].tobytes() for name in names)
        return info

    @property
    def values(self) -> tuple[float, float]:
        return float(self.params["w0"][0]), float(self.params["w1"][0])

    @property
    def outer_values(self) -> tuple[float, float]:
        arrays = self.outer.state.arrays
        return float(arrays["outer/w0"][0]), float(arrays["outer/w1"][0])


def test_each_fragment_is_averaged_once_in_a_cycle_by_hand() -> None:
    group = MeetingGroup(["a"])
    peer = Peer(group, "a")

    ends = [info for _ in range(8) if (info := peer.go(-1.0)) is not None]

    # w0 at positions 2 and 6, w1 at 4 and 8
    assert [(info.position, info.fragment, info.round) for info in ends] == [
        (2, 0, 1), (4, 1, 2), (6, 0, 3), (8, 1, 4)
    ]  # fmt: skip
    assert without_tallies(group.log) == ["sync", *["reduce", "reduce/1"] * 2]
    # nothing is averaged away alone, with learning rate 1
    assert peer.values == (2.0, 2.0)
    assert peer.outer_values == (4.0, 2.0)


def test_the_average_arrives_overlap_steps_later_and_is_mixed_in_by_hand() -> None:
    group = MeetingGroup(["a", "b"])
    values: dict[str, list[tuple[float, float]]] = {"a": [], "b": []}

    def train(name: str, change: float) -> None:
        peer = Peer(group, name, overlap=1, mixing=0.5)
        for _ in range(3):
            peer.go(change)
            values[name].append(peer.values)

    meet(lambda: train("a", -1.0), lambda: train("b", -3.0))

    # posted at 2: (2 + 6) / 2 = 4, outer w0 = 6; at 3 a is at 7, and goes to (7 + 6) / 2
    assert values["a"] == [(9.0, 9.0), (8.0, 8.0), (6.5, 7.0)]
    assert values["b"] == [(7.0, 7.0), (4.0, 4.0), (3.5, 1.0)]


def test_a_fragment_may_be_on_its_way_while_the_next_is_posted() -> None:
    group = MeetingGroup(["a"])
    peer = Peer(group, "a", overlap=3)
    outers = []
    for _ in range(7):
        peer.go(-1.0)
        outers.append(peer.outer_values)

    # w0 posted at 2, here at 5; w1 posted at 4, here at 7
    assert outers == [*[(10.0, 10.0)] * 4, *[(8.0, 10.0)] * 2, (8.0, 6.0)]


@pytest.mark.parametrize("overlap", [0, 1, 2, 3])
def test_a_newcomer_has_the_same_bits_from_its_first_outer_step(overlap: int) -> None:
    group = MeetingGroup(["a"])
    seen: dict[str, dict[int, bytes]] = {}

    def train(name: str, last: int) -> None:
        value = 10.0 if name == "a" else -99.0
        peer = Peer(group, name, overlap=overlap, mixing=0.5, value=value, momentum=0.5)
        while peer.outer.position < last:
            if name == "a" and peer.outer.position == 3:
                group.newcomers = ["b"]
            peer.go(-1.0 if name == "a" else -3.0)
        seen[name] = peer.seen

    meet(lambda: train("a", 20), lambda: train("b", 20))

    assert "admit" in group.log
    assert len(seen["b"]) >= 6
    assert all(seen["a"][position] == state for position, state in seen["b"].items())


@pytest.mark.parametrize("overlap", [1, 3])
def test_too_few_members_regroup_in_the_middle_of_a_round(overlap: int) -> None:
    group = MeetingGroup(["a"])
    seen: dict[str, dict[int, bytes]] = {}

    def train(name: str, last: int) -> None:
        value = 10.0 if name == "a" else -99.0
        peer = Peer(group, name, overlap=overlap, mixing=0.5, value=value, momentum=0.5)
        while peer.outer.position < last:
            if name == "a" and peer.outer.position == 2 and not group.newcomers:
                # whatever is in flight when the average of w0 is due
                for kind in ("tally", "reduce/0", "reduce/1"):
                    group.failures[kind] = [CollectiveAborted("1 of 2 members")]
                group.failures["tally"] *= 1 if overlap == 1 else 2
                if overlap == 1:
                    del group.failures["reduce/1"]
                group.newcomers = ["b"]
            peer.go(-1.0 if name == "a" else -3.0)
        seen[name] = peer.seen

    meet(lambda: train("a", 16), lambda: train("b", 16))

    assert not any(group.failures.values())
    assert all(seen["a"][position] == state for position, state in seen["b"].items())
    # b has the schedule of a: it stands just before the step at which w0 was due
    assert min(seen["b"]) == (4 if overlap == 1 else 6)


def test_who_is_lost_in_flight_is_left_out_by_hand() -> None:
    group = MeetingGroup(["a", "b"], losses={"reduce/1": ["b"]})
    outers: dict[str, tuple[float, float]] = {}

    def train(name: str, change: float) -> None:
        peer = Peer(group, name)
        for _ in range(4):
            peer.go(change)
        outers[name] = peer.outer_values

    meet(lambda: train("a", -1.0), lambda: train("b", -3.0))

    assert outers == {"a": (6.0, 6.0)}


def test_who_is_rejected_counts_only_the_steps_made_since_in_every_fragment() -> None:
    group = MeetingGroup(["a", "b"])
    infos: dict[str, list[RoundInfo]] = {"a": [], "b": []}
    outers: dict[str, tuple[float, float]] = {}

    def train(name: str) -> None:
        peer = Peer(group, name, inner_steps=8)
        for number in range(8):
            if (name, number) == ("b", 3):
                peer.params["w0"][0] = np.nan
            info = peer.go(-1.0)
            infos[name] += [] if info is None else [info]
        outers[name] = peer.outer_values

    meet(lambda: train("a"), lambda: train("b"))

    first, second = infos["b"]
    assert (first.rejected, first.counted, first.own_share) == (True, 1, 0.0)
    # a: 8 in 8 steps; b: 4 in the 4 since it got the outer parameters
    assert (second.rejected, second.counted) == (False, 2)
    assert second.own_share == pytest.approx(1 / 3)
    assert outers["a"] == outers["b"] == pytest.approx((6.0, 10.0 - (8 * 1 + 4 * 0.5) / 1.5))


def test_a_slow_peer_leaves_out_inner_steps_and_keeps_the_schedule() -> None:
    now = [0.0]
    group = MeetingGroup(["a"])
    params = params_at(10.0)
    outer = StreamingDiLoCo(
        MeetingComm(group, "a"),
        params,
        8,
        fragments=[["w0"], ["w1"]],
        overlap=2,
        max_seconds_per_round=4.0,
        clock=lambda: now[0],
    )
    positions = []
    for _ in range(4):
        now[0] += 2.5
        params["w0"] -= np.float32(1.0)
        info = outer.step()
        assert info is not None
        positions.append(info.position)

    assert positions == [4, 8, 12, 16]
    assert outer.inner_steps_done == 3  # the fourth is on its way


def test_fragments_are_strided_over_the_layers() -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (10, 4), "head": (2, 2), "scale": (1,),
        **{f"blocks.{i}.{part}": (4, 4) for i in range(5) for part in ("w", "v")},
    }  # fmt: skip

    fragments = strided_fragments(shapes, 2)

    # layers 0, 2, 4 and 1, 3; then the largest of the rest to the smaller one
    assert sorted(fragments[0]) == sorted(
        ["head", "scale", *(f"blocks.{i}.{part}" for i in (0, 2, 4) for part in ("w", "v"))]
    )
    assert sorted(fragments[1]) == sorted(
        ["embedding", *(f"blocks.{i}.{part}" for i in (1, 3) for part in ("w", "v"))]
    )


def test_layers_are_sorted_by_number_not_by_text() -> None:
    shapes: dict[str, tuple[int, ...]] = {f"h.{i}.w": (1,) for i in range(12)}

    assert strided_fragments(shapes, 12) == [[f"h.{i}.w"] for i in range(12)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fragments": 3}, "too many"),
        ({"fragments": 0}, "1 or more"),
        ({"fragments": [["w0"]]}, "every parameter once"),
        ({"fragments": [["w0", "w1"], ["w1"]]}, "every parameter once"),
        ({"fragments": [["w0", "w1"], []]}, "no parameter"),
        ({"fragments": 2, "inner_steps": 1}, "one each"),
        ({"fragments": 2, "overlap": 4}, "from 0 to 3"),
        ({"fragments": 2, "mixing": 1.0}, "mixing"),
    ],
)
def test_an_impossible_schedule_is_refused(options: dict[str, object], message: str) -> None:
    options = {"inner_steps": 4, **options}

    with pytest.raises(ValueError, match=message):
        StreamingDiLoCo(
            MeetingComm(MeetingGroup(["a"]), "a"),
            params_at(1.0),
            **options,  # type: ignore[arg-type]
        )
