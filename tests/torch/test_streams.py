"""The order of copies on CUDA, on a device that does nothing before it has to.

`LateDevice` plays a CUDA device on the CPU: what is enqueued on a stream happens when somebody
waits for that stream, and not a moment earlier; or, if computing is hasty, copies do so while all
else happens at once. Code that reads host memory, or computes on the device, before it has waited
for the copy sees what was there before, and ends with other numbers.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ringhaul import CodecError
from ringhaul.diloco import SGD
from ringhaul.testing.meetings import MeetingComm, MeetingGroup

torch = pytest.importorskip("torch")
nn = torch.nn

from torch.overrides import TorchFunctionMode  # noqa: E402 - needs torch

import ringhaul.torch as ringhaul_torch  # noqa: E402 - needs torch

CUDA = torch.device("cuda", 0)
LOOPS = ["DiLoCo", "DelayedDiLoCo", "StreamingDiLoCo"]


class LateStream:
    """A stream whose work is done when it is waited for; or at once, if it is hasty."""

    def __init__(self, *, is_hasty: bool = False) -> None:
        self.is_hasty = is_hasty
        self.queue: list[Callable[[], None]] = []

    def enqueue(self, work: Callable[[], None]) -> None:
        """Work that comes after what is enqueued before."""
        self.queue.append(work)
        if self.is_hasty:
            self.synchronize()

    def synchronize(self) -> None:
        """Do all that is enqueued."""
        while self.queue:
            self.queue.pop(0)()

    def wait_stream(self, other: "LateStream") -> None:
        """What comes later here comes after what is enqueued there now."""
        count = len(other.queue)
        before = list(other.queue)

        def catch_up() -> None:
            for work in before[:count]:
                if work in other.queue:
                    other.queue.remove(work)
                    work()

        self.enqueue(catch_up)


class LateDevice(TorchFunctionMode):  # type: ignore[misc, unused-ignore]
    """Tensors that `place` was given are on the device; what is done with them is enqueued."""

    def __init__(self, *, is_hasty: bool = False) -> None:
        super().__init__()
        self.compute = LateStream(is_hasty=is_hasty)
        self.current = self.compute
        self.pinned_counts: list[int] = []
        self._memory: dict[int, Any] = {}

    def place(self, tensor: Any) -> Any:  # noqa: ANN401
        """This tensor, and all that share its memory, are on the device from now on."""
        self._memory[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    def has(self, tensor: object) -> bool:
        """Is it on the device?"""
        return (
            isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() in self._memory
        )

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        kwargs = dict(kwargs or {})
        if kwargs.pop("pin_memory", False):
            made = func(*args, **kwargs)
            self.pinned_counts.append(made.numel())
            return made
        name = getattr(func, "__name__", "")
        if func == torch.Tensor.device.__get__:
            return CUDA if self.has(args[0]) else func(*args)
        if name == "to" and (self.has(args[0]) or CUDA in args):
            made = self.place(torch.empty(args[0].shape, dtype=self._dtype(args)))
            self.current.enqueue(lambda: self._copy(made, args[0]))
            return made
        if name in ("copy_", "add_") and any(self.has(arg) for arg in args):
            self.current.enqueue(lambda: self._do(func, args))
            if name == "copy_" and not kwargs.get("non_blocking") and not self.has(args[0]):
                self.current.synchronize()
            return args[0]
        return func(*args, **kwargs)

    def _dtype(self, args: Any) -> Any:  # noqa: ANN401
        return next((a for a in args[1:] if isinstance(a, torch.dtype)), args[0].dtype)

    def _copy(self, made: Any, given: Any) -> None:  # noqa: ANN401
        self._do(torch.Tensor.copy_, (made, given))

    def _do(self, func: Any, args: Any) -> None:  # noqa: ANN401
        with torch.no_grad(), torch._C.DisableTorchFunction():
            func(*args)


@pytest.fixture(params=[False, True], ids=["late", "hasty"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LateDevice:
    late = LateDevice(is_hasty=request.param)

    @contextlib.contextmanager
    def on(stream: LateStream) -> Iterator[None]:
        before, late.current = late.current, stream
        yield
        late.current = before

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: LateStream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: late.current)
    monkeypatch.setattr(torch.cuda, "stream", on)
    return late


def train(loop: str, device: LateDevice | None, comm: MeetingComm) -> tuple[list[float], bytes]:
    """Twelve inner steps of known gradients; the parameters at the end, and the state's digest."""
    model = nn.Module()
    for index in range(4):
        dtype = torch.bfloat16 if index == 1 else torch.float32
        value = torch.arange(3, dtype=dtype)
        setattr(model, f"w{index}", nn.Parameter(device.place(value) if device else value))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with device or contextlib.nullcontext():
        outer = getattr(ringhaul_torch, loop)(
            model, optimizer, comm, 4, outer_optimizer=SGD(0.5, momentum=0.5)
        )
        for number in range(12):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.detach().add_(torch.tensor(2.0**-number))
            outer.step()
        outer.finish()
        if device is not None:
            device.compute.synchronize()
    return [x for p in model.parameters() for x in p.float().tolist()], outer.state.digest()


@pytest.mark.parametrize("loop", LOOPS)
def test_on_a_device_that_is_late_the_same_comes_out(loop: str, device: LateDevice) -> None:
    found = train(loop, device, MeetingComm(MeetingGroup(["a"]), "a"))

    assert found == train(loop, None, MeetingComm(MeetingGroup(["a"]), "a"))


def test_what_travels_is_in_pinned_memory(device: LateDevice) -> None:
    train("DiLoCo", device, MeetingComm(MeetingGroup(["a"]), "a"))

    # outer parameters and pseudo-gradients
    assert device.pinned_counts == [12, 12]


def test_an_all_reduce_waits_for_the_copies_both_ways(device: LateDevice) -> None:
    seen: list[list[float]] = []

    class Doubling:
        """Two peers that hold the same."""

        def all_reduce_many(self, hosts: list[Any], *_: object, **__: object) -> list[None]:
            seen.extend(host.tolist() for host in hosts)
            for host in hosts:
                host.mul_(2)
            return [None] * len(hosts)

    first, second = device.place(torch.ones(2)), device.place(torch.arange(3.0))
    with device:
        first.add_(torch.tensor(1.0))  # still under way when the call begins
        ringhaul_torch.all_reduce(Doubling(), [first, second])  # type: ignore[arg-type]

    assert seen == [[2.0, 2.0], [0.0, 1.0, 2.0]]
    assert [first.tolist(), second.tolist()] == [[4.0, 4.0], [0.0, 2.0, 4.0]]
    assert device.pinned_counts == [2, 3]


def test_after_an_error_what_is_reduced_is_on_the_device(device: LateDevice) -> None:
    class Partial:
        def all_reduce_many(self, hosts: list[Any], *_: object, **__: object) -> None:
            for host in hosts:
                host.mul_(2)
            error = CodecError("unfit")
            error.infos = ["reduced", None]
            raise error

    first, second = device.place(torch.ones(2)), device.place(torch.arange(3.0))
    with device, pytest.raises(CodecError):
        ringhaul_torch.all_reduce(Partial(), [first, second])  # type: ignore[arg-type]

    assert [first.tolist(), second.tolist()] == [[2.0, 2.0], [0.0, 1.0, 2.0]]


def test_the_device_is_late() -> None:
    """The fake itself: without a wait nothing has happened."""
    device = LateDevice()
    there, here = device.place(torch.ones(2)), torch.zeros(2)

    with device:
        here.copy_(there, non_blocking=True)
        assert here.tolist() == [0.0, 0.0]
        other = LateStream()
        other.wait_stream(device.compute)
        assert here.tolist() == [0.0, 0.0]
        other.synchronize()
    assert here.tolist() == [1.0, 1.0]
