"""What child processes tell their orchestrator: one JSON object a line on stdout."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

EventT = TypeVar("EventT")


class EventLines(Generic[EventT]):
    """Frozen dataclasses <-> lines; their names stand in the field `event`."""

    def __init__(self, by_name: Mapping[str, type[EventT]]) -> None:
        self._by_name = dict(by_name)
        self._names = {kind: name for name, kind in by_name.items()}

    def encode(self, event: EventT) -> str:
        """One line, without its end."""
        fields: Any = event
        return json.dumps({"event": self._names[type(event)], **dataclasses.asdict(fields)})

    def decode(self, line: str) -> EventT | None:
        """The event on a line; None if it holds anything else, such as a library's warning."""
        try:
            fields = json.loads(line)
            kind = self._by_name[fields.pop("event")]
            return kind(**fields)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
