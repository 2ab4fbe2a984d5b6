"""A status report as tables, and as plain values for JSON."""

import dataclasses
import enum
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ringhaul.wire.status_messages import OperationStatus, PeerState, PeerStatus, StatusReport

_STYLES = {PeerState.MEMBER: "green", PeerState.PENDING: "yellow", PeerState.AWAY: "red"}
_EVENTS_SHOWN = 12


def as_plain(value: object) -> Any:  # noqa: ANN401 - whatever JSON takes
    """Records as dicts, enumerations as their values, tuples as lists."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [as_plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {f.name: as_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def page(report: StatusReport, address: str) -> RenderableType:
    """Everything, top to bottom."""
    parts: list[RenderableType] = [
        Text(
            f"coordinator {address}, up for {duration(report.uptime_s)}: "
            f"{report.peer_count} peers, {report.pending_count} of them pending, "
            f"{report.operation_count} open operations",
            style="bold",
        )
    ]
    parts += [Text(line) for line in _group_lines(report)]
    parts.append(_peer_table(report))
    hidden = report.peer_count - len(report.peers)
    if hidden:
        parts.append(Text(f"and {hidden} more peers"))
    if report.operations:
        parts.append(_operation_table(report))
        hidden = report.operation_count - len(report.operations)
        if hidden:
            parts.append(Text(f"and {hidden} more operations"))
    parts += [
        Text(f"{duration(event.age_s):>7} ago  {event.text}", style="dim")
        for event in report.events[-_EVENTS_SHOWN:]
    ]
    return Group(*parts)


def _group_lines(report: StatusReport) -> list[str]:
    lines = []
    for group in report.groups:
        members = [p for p in report.peers if p.group == group.group and p.rank is not None]
        ring = " -> ".join(peer.peer for peer in members) or "nobody"
        line = f"group {group.group}, generation {group.generation}: {ring}"
        if group.revision is not None:
            line += f"; state at revision {group.revision}"
        if group.unusable_pairs:
            line += f"; {group.unusable_pairs} pairs cannot be neighbours"
        lines.append(line)
        if group.opening:
            lines.append(f"  opening: {group.opening}")
    return lines


def _peer_table(report: StatusReport) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("peer", "group", "state", "rank", "since", "heard", "sends", "waits for"):
        table.add_column(column, justify="right" if column in ("group", "rank") else "left")
    for peer in report.peers:
        table.add_row(*_peer_row(peer))
    return table


def _peer_row(peer: PeerStatus) -> list[Text]:
    cells = (
        peer.peer,
        str(peer.group),
        peer.state.value,
        "" if peer.rank is None else str(peer.rank),
        duration(peer.since_s),
        f"{duration(peer.heard_s)} ago",
        "" if peer.outgoing_bytes_per_s is None else rate(peer.outgoing_bytes_per_s),
        peer.waits_for,
    )
    return [Text(cell, style=_STYLES[peer.state] if i == 2 else "") for i, cell in enumerate(cells)]


def _operation_table(report: StatusReport) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("operation", "call", "since", "began", "finished", "waits for"):
        table.add_column(column)
    for operation in report.operations:
        cells = (
            f"{operation.group}: {operation.key}",
            operation.call,
            duration(operation.since_s),
            str(operation.began_count),
            str(operation.finished_count),
            _missing(operation),
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _missing(operation: OperationStatus) -> str:
    """Who has not begun, or else who has not finished."""
    if operation.not_begun:
        return f"{', '.join(operation.not_begun)} to begin"
    return f"{', '.join(operation.not_finished)} to finish"


def duration(seconds: float) -> str:
    """As short as it makes sense: 0.3 s, 12 s, 5 min, 3.2 h, 4.0 d."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} d"


def rate(bytes_per_s: int) -> str:
    """With a unit of three digits or fewer."""
    value = float(bytes_per_s)
    for unit in ("B/s", "kB/s", "MB/s"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB/s"
