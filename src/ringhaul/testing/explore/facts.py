"""A machine's facts as a value that can be compared, and copies of a machine.

Both walk over the machine's objects alike: what cannot change is shared, the rest is looked
into. Knows no names of fields but those that are no facts.
"""

import dataclasses
import enum
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable

#: Of one step, or for the story and the status only.
NO_FACTS = frozenset({"effects", "events", "_story"})
#: What is asked of these does not depend on the order in which they were filled, but for the
#: texts of errors: who is named first, what is sent first on which of two connections.
UNORDERED = frozenset({"began", "finished", "links"})
_ATOMS = (int, str, bytes, bool, float, type(None))
_fields: dict[type, tuple[str, ...]] = {}
_constant: dict[type, bool] = {}


def freeze(value: object, now: float, name: str = "") -> Hashable:
    """The facts in `value` as nested tuples.

    A float is an instant, and counts relative to `now`, unless `name` says that it is a
    duration. Two machines with equal facts behave alike from there on.
    """
    if isinstance(value, float):
        return value if name.endswith("_s") else round(value - now, 9)
    if is_constant(value):
        assert isinstance(value, Hashable)
        return value
    if isinstance(value, (tuple, list, deque)):
        return tuple(freeze(item, now, name) for item in value)
    if isinstance(value, (set, frozenset)):
        return frozenset(freeze(item, now, name) for item in value)
    if isinstance(value, dict):
        items = ((freeze(k, now), freeze(v, now)) for k, v in value.items())
        unordered = isinstance(value, Counter) or name in UNORDERED
        return frozenset(items) if unordered else tuple(items)
    return type(value).__name__, *(
        freeze(getattr(value, field), now, field)
        for field in fields_of(value)
        if field not in NO_FACTS
    )


def is_constant(value: object) -> bool:
    """Whether nothing in it ever changes, and no instant is in it."""
    kind = type(value)
    known = _constant.get(kind)
    if known is None:
        frozen = dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        known = _constant[kind] = bool(
            (kind in _ATOMS and kind is not float) or issubclass(kind, enum.Enum) or frozen
        )
    return known


def fields_of(value: object) -> tuple[str, ...]:
    """The attributes of an object, in an order that does not change."""
    kind = type(value)
    if kind not in _fields:
        slots = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
        names = slots or sorted(vars(value))
        assert names or dataclasses.is_dataclass(kind), f"{kind} has no facts that are seen"
        _fields[kind] = tuple(names)
    return _fields[kind]


def copied(value: object, made: dict[int, object]) -> object:
    """A copy that shares only what never changes. `made`: what was copied before."""
    if isinstance(value, float) or is_constant(value):
        return value
    if id(value) in made:
        return made[id(value)]
    copy: object
    if isinstance(value, tuple):
        items = [copied(item, made) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return tuple(items)
    if isinstance(value, list):
        copy = made[id(value)] = [copied(item, made) for item in value]
    elif isinstance(value, deque):
        copy = made[id(value)] = deque((copied(i, made) for i in value), value.maxlen)
    elif isinstance(value, set):
        copy = made[id(value)] = {copied(item, made) for item in value}
    elif isinstance(value, dict):
        assert type(value) in (dict, OrderedDict, Counter), type(value)
        into: dict[object, object] = type(value)()
        copy = made[id(value)] = into
        for key, item in value.items():
            into[key] = copied(item, made)
    else:
        assert not callable(value), value
        copy = made[id(value)] = object.__new__(type(value))
        for field in fields_of(value):
            object.__setattr__(copy, field, copied(getattr(value, field), made))
    return copy
