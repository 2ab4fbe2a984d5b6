"""Checkpoints that are of something else: refused, with what differs, and nothing changed."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul.diloco import SGD, AdamW, DiLoCo, OuterOptimizer, StreamingDiLoCo
from ringhaul.testing.meetings import MeetingComm, MeetingGroup

Array = NDArray[np.floating]


def params_of(*names: str, count: int = 2) -> dict[str, Array]:
    return {name: np.ones(count, np.float32) for name in names}


def checkpoint(params: dict[str, Array], optimizer: OuterOptimizer | None = None) -> dict[str, Any]:
    comm = MeetingComm(MeetingGroup(["a"]), "a")
    outer = DiLoCo(comm, params, 1, optimizer=optimizer)
    for values in params.values():
        values -= 1.0
    outer.step()
    return outer.state_dict()


@pytest.mark.parametrize(
    ("saved", "optimizer", "message"),
    [
        ({}, None, "with 'arrays' and 'revision'; this has"),
        ({"arrays": {}}, None, "this has .'arrays'."),
        (checkpoint(params_of("w", "more")), None, "another model.*checkpoint has .*'outer/more'"),
        (checkpoint(params_of("v")), None, "another model.*this run has .*'outer/w'"),
        (checkpoint(params_of("w", count=3)), None, r"shape \(3,\) in the checkpoint and \(2,\)"),
        (checkpoint(params_of("w")), SGD(0.5), "remembers momentum, this one nothing"),
        (checkpoint(params_of("w"), SGD(0.5)), None, "remembers nothing, this one momentum"),
        (checkpoint(params_of("w")), AdamW(0.1), "remembers momentum, this one mean and square"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    saved: dict[str, Any], optimizer: OuterOptimizer | None, message: str
) -> None:
    params = params_of("w")
    comm = MeetingComm(MeetingGroup(["a"]), "a")
    with pytest.raises(ValueError, match=message):
        DiLoCo(comm, params, 1, optimizer=optimizer, resume=saved)

    assert params["w"].tolist() == [1.0, 1.0]
    assert comm.group.log == []


def test_a_checkpoint_with_other_fragments_says_so() -> None:
    saved = checkpoint(params_of("v", "w"))

    with pytest.raises(ValueError, match="a run with 1 fragments, this one has 2"):
        StreamingDiLoCo(
            MeetingComm(MeetingGroup(["a"]), "a"),
            params_of("v", "w"),
            2,
            fragments=2,
            resume=saved,
        )


def test_what_is_no_checkpoint_is_refused() -> None:
    comm = MeetingComm(MeetingGroup(["a"]), "a")
    with pytest.raises(TypeError, match="not a str"):
        DiLoCo(comm, params_of("w"), 1, resume="run.pt")  # type: ignore[arg-type]


def test_a_checkpoint_of_the_same_run_goes_on() -> None:
    params = params_of("w")
    saved = checkpoint(params)
    again = params_of("w")
    outer = DiLoCo(MeetingComm(MeetingGroup(["a"]), "a"), again, 1, resume=saved)

    assert again["w"].tolist() == params["w"].tolist()
    assert (outer.round, outer.position) == (1, 1)
