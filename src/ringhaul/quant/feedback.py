"""Error feedback: what a codec lost in one call is added to the next call of the same tag.

In a ring all-reduce a peer encodes every element exactly once: its own values of the first
chunk, partial sums of the others, the result of the chunk it owns. What that encoding lost, it
alone knows, and adds to its own values next time. Over many calls nothing is lost but the last
residual (Seide et al. 2014; Karimireddy et al. 2019).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringhaul.quant.base import Codec, Coder, Values
from ringhaul.quant.registry import find_codec
from ringhaul.ring.reduce import accumulate_dtype


@dataclass(frozen=True, slots=True)
class Residual:
    """A part of a round's residuals: read `carried`, write `pending`. Both of shape (n,)."""

    carried: Values
    pending: Values


class FeedbackRound:
    """The residuals of one attempt of one call.

    Nothing of it counts before `commit`; a round that is dropped, or ended by `rollback`, has
    never been. What an attempt does not encode keeps its residual, so a world of one does
    nothing. A retry begins a round of its own.
    """

    def __init__(self, owner: "ErrorFeedback", tag: str, carried: Values) -> None:
        self._owner: ErrorFeedback | None = owner
        self._tag = tag
        self._carried = carried
        self._pending = carried.copy()

    def at(self, start: int, stop: int) -> Residual:
        """The part of elements [start, stop) of the array."""
        return Residual(self._carried[start:stop], self._pending[start:stop])

    def commit(self) -> None:
        """The call was committed: the residuals of this round are what the next one adds."""
        assert self._owner is not None, "this round has ended"
        self._owner._residuals[self._tag] = self._pending
        self._owner = None

    def rollback(self) -> None:
        """The attempt was aborted: the residuals are what they were."""
        self._owner = None


class Reservation:
    """A tag, and its residuals, for one call: from before it is handed over until it has ended.

    One that is dropped, because its call never began, is released by that.
    """

    def __init__(
        self, owner: "ErrorFeedback", tag: str, element_count: int, dtype: np.dtype[Any]
    ) -> None:
        self._owner = owner
        self._tag = tag
        self._element_count = element_count
        self._dtype = dtype
        self._mark = object()
        if owner._in_flight.setdefault(tag, self._mark) is not self._mark:  # one step: thread safe
            raise ValueError(_in_flight(tag, "begin the next"))
        try:
            #: As they are until the call ends: nobody else may change them.
            self._carried = owner._find(tag, element_count, dtype)
        except ValueError:
            self.release()
            raise

    def begin(self) -> FeedbackRound:
        """Begin an attempt; never refused, whatever has become of the owner since."""
        carried = self._carried
        if carried is None:
            carried = np.zeros(self._element_count, accumulate_dtype(self._dtype))
        return FeedbackRound(self._owner, self._tag, carried)

    def release(self) -> None:
        """The call has ended: the next one of the tag may begin."""
        if self._owner._in_flight.get(self._tag) is self._mark:
            del self._owner._in_flight[self._tag]

    __del__ = release


class ErrorFeedback:
    """A lossy codec that makes good in the next call what it lost in this one.

    Pass it as `codec=` with a `tag=`, the same object in every call; only for "sum" and "avg".
    Residuals belong to this peer and are as large as the array, twice that during a call (in
    float32, or float64 for float64 arrays). They change only when a call commits. Save them
    with this peer's own checkpoint, not in the shared state: they differ between peers.

    One call of a tag at a time, also among several communicators: the next one adds what this
    one loses, and is refused with a ValueError before it is done.

    Args:
        codec: the name of a lossy codec, or one.

    Raises:
        ValueError: the codec is not known, or not lossy.
    """

    def __init__(self, codec: str | Codec) -> None:
        inner = find_codec(codec)
        if isinstance(inner, ErrorFeedback) or not inner.is_lossy:
            raise ValueError(f'error feedback needs a lossy codec, and "{inner.name}" is none')
        self.codec = inner
        #: Arrays in it are replaced, never changed.
        self._residuals: dict[str, Values] = {}
        #: By tag, the mark of the reservation that has it.
        self._in_flight: dict[str, object] = {}

    @property
    def name(self) -> str:
        """Differs from the codec's: all members use error feedback, or none does."""
        return f"{self.codec.name}+feedback"

    @property
    def is_lossy(self) -> bool:
        return True

    def make_coder(self, dtype: np.dtype[Any]) -> Coder:
        return self.codec.make_coder(dtype)

    def error_bound(self, low: float, high: float) -> float:
        return self.codec.error_bound(low, high)

    def check(self, tag: str | None, element_count: int, dtype: np.dtype[Any]) -> None:
        """Refuse a call with arguments that `reserve` refuses.

        Raises:
            ValueError: no tag, or the array has another size or dtype than in the last call
                of the tag: use another tag, or `forget` the old residuals.
        """
        if tag is None:
            raise ValueError("error feedback keeps its residuals by tag: give the call a tag=")
        self._find(tag, element_count, dtype)

    def _find(self, tag: str, element_count: int, dtype: np.dtype[Any]) -> Values | None:
        """The residuals of a tag, of which there may be none yet; as `check`."""
        wide = accumulate_dtype(dtype)
        carried = self._residuals.get(tag)
        if carried is not None and (carried.shape != (element_count,) or carried.dtype != wide):
            raise ValueError(
                f"tag {tag!r} has residuals of {carried.size} elements of {carried.dtype}, and "
                f"the array needs {element_count} of {wide}: call forget({tag!r}), or use "
                "another tag"
            )
        return carried

    def reserve(self, tag: str | None, element_count: int, dtype: np.dtype[Any]) -> Reservation:
        """Take a tag for one call, until that has ended.

        Raises:
            ValueError: as `check`; or another call of the tag is in flight: wait for it first.
        """
        self.check(tag, element_count, dtype)
        assert tag is not None
        return Reservation(self, tag, element_count, dtype)

    def forget(self, tag: str) -> None:
        """Drop the residuals of `tag`, if there are any.

        Raises:
            ValueError: a call of the tag is in flight, which would bring them back.
        """
        if tag in self._in_flight:
            raise ValueError(_in_flight(tag, "forget it"))
        self._residuals.pop(tag, None)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Copies of all residuals by tag, to be saved with this peer's checkpoint.

        Calls may be in flight: each tag's are those before its call, or those after it.
        """
        residuals = list(self._residuals.items())  # a call may commit while they are copied
        return {tag: values.copy() for tag, values in residuals}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Replace all residuals by copies of what `state_dict` gave.

        Raises:
            ValueError: an entry is no flat array of finite float32 or float64; or a call is in
                flight, which would replace what is loaded.
        """
        for tag in list(self._in_flight):
            raise ValueError(_in_flight(tag, "load residuals"))
        residuals: dict[str, Values] = {}
        for tag, values in state.items():
            array = np.array(values)
            if array.ndim != 1 or array.dtype not in (np.float32, np.float64):
                raise ValueError(f"residual {tag!r} has shape {array.shape}, {array.dtype}")
            if not np.isfinite(array).all():
                raise ValueError(f"residual {tag!r} holds values that are not finite")
            residuals[tag] = array
        self._residuals = residuals


def _in_flight(tag: str, what: str) -> str:
    return f"a call of tag {tag!r} with this error feedback is in flight: {what} when it is done"
