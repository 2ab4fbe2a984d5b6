"""Which kernels are compiled, and for which dtypes. Needs numba (the extra "fast")."""

from collections.abc import Callable, Iterator
from typing import Any

from numba.core import types

from ringhaul.compiled import blocks, casts, fine
from ringhaul.ring.twins import Twin


def _read(element: types.Type) -> types.Type:
    """An array that is only read, and may be read-only."""
    return types.Array(element, 1, "C", readonly=True)


def _write(element: types.Type) -> types.Type:
    return types.Array(element, 1, "C")


_BYTES_IN, _BYTES = _read(types.uint8), _write(types.uint8)
_HALVES_IN, _HALVES = _read(types.uint16), _write(types.uint16)
_SINGLES_IN, _SINGLES = _read(types.float32), _write(types.float32)


def _signatures() -> Iterator[tuple[str, Any, tuple[types.Type, ...]]]:
    """Name, kernel and argument types; several of a name where there are several dtypes."""
    for float_type in (types.float32, types.float64):
        values_in, values = _read(float_type), _write(float_type)
        flag, count = types.boolean, types.intp
        dice = _read(types.int16)
        yield (
            "encode",
            blocks.encode,
            (values_in, values, _BYTES, dice, count, values_in, flag),
        )
        yield "is_plain", blocks.is_plain, (values, types.float64, types.float64)
        yield "decode", blocks.decode, (_BYTES_IN, values_in, count, flag, values)
        yield (
            "decode_add",
            blocks.decode_add,
            (_BYTES_IN, values_in, count, flag, values_in, values),
        )
        yield (
            "encode_fine",
            fine.encode_fine,
            (values_in, values, _BYTES, _BYTES, _BYTES, count, count, count, values_in),
        )
        head = (_BYTES_IN, _BYTES_IN, _BYTES_IN, values_in, count, count)
        yield "decode_fine", fine.decode_fine, (*head, values)
        yield "decode_add_fine", fine.decode_add_fine, (*head, values_in, values)
    yield "roll", blocks.roll, (types.uint64, _write(types.uint64))
    yield "pack", blocks.pack, (_BYTES_IN, _BYTES)
    yield "unpack", blocks.unpack, (_BYTES_IN, _BYTES)
    for name in ("float16", "bfloat16"):
        for action, arguments in {
            "widen": (_HALVES_IN, _SINGLES),
            "narrow": (_SINGLES_IN, _HALVES),
            "add": (_SINGLES_IN, _HALVES_IN, _SINGLES),
            "add_to": (_SINGLES, _HALVES_IN),
            "finish": (_SINGLES_IN, _HALVES_IN, types.float32, _HALVES),
        }.items():
            yield f"{action}_{name}", getattr(casts, f"{action}_{name}"), arguments


def compile_twins(is_wanted: Callable[[], bool] = lambda: True) -> dict[str, Twin]:
    """All kernels, for all their dtypes; they compile nothing any more after this.

    Done once a process. Asks before each kernel whether to go on, and returns none if not.
    """
    twins: dict[str, Any] = {}
    for name, kernel, arguments in _signatures():
        if not is_wanted():
            return {}
        if arguments not in kernel.overloads:
            kernel.compile(arguments)
        twins[name] = kernel
    for kernel in twins.values():
        kernel.disable_compile()
    return twins
