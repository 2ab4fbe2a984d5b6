"""From figures to a table and a suggestion."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from ringhaul.cli.bench.measure import Findings, Row

#: Within this of the best is as good: runs differ by more, and fewer streams are gentler.
GOOD_ENOUGH = 0.95


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What to pass as `streams=`; None: nothing."""

    streams: int | None
    reason: str


def suggest(rows: tuple[Row, ...]) -> Suggestion:
    """The least that is as good as the best, at the largest size; the default if it is."""
    largest = max(row.size_bytes for row in rows)
    found = {row.streams: row.busbw_GB_s for row in rows if row.size_bytes == largest}
    best = max(found.values())
    good = [streams for streams, busbw in found.items() if busbw >= GOOD_ENOUGH * best]
    if None in good:
        return Suggestion(None, "leave streams= out: the default is as good as any number tried")
    fewest = min(streams for streams in good if streams is not None)
    if None not in found:
        return Suggestion(fewest, f"connect(..., streams={fewest})")
    gain = found[fewest] / found[None] - 1
    return Suggestion(fewest, f"connect(..., streams={fewest}): {gain:.0%} over the default")


def print_findings(findings: Findings, console: Console) -> None:
    """The table, latency (a round trip to the coordinator) above, the suggestion below."""
    latency = f"barrier {findings.latency_s * 1e3:.2f} ms"
    table = Table(title=f"all_reduce, float32 sum, {findings.world_size} peers, {latency}")
    table.add_column("streams")
    for name in ("MiB", "calls", "median ms", "worst ms", "algbw GB/s", "busbw GB/s", "per stream"):
        table.add_column(name, justify="right")
    before: int | None = findings.rows[0].streams
    for row in findings.rows:
        if row.streams != before:
            table.add_section()
        before = row.streams
        table.add_row(
            "default" if row.streams is None else str(row.streams),
            f"{row.size_bytes / (1 << 20):.4g}",
            str(row.calls),
            f"{row.median_s * 1e3:.2f}",
            f"{row.worst_s * 1e3:.2f}",
            f"{row.algbw_GB_s:.4f}",
            f"{row.busbw_GB_s:.4f}",
            "" if row.per_stream_GB_s is None else f"{row.per_stream_GB_s:.4f}",
        )
    console.print(table)
    best = max(findings.rows, key=lambda row: row.busbw_GB_s)
    console.print(
        f"in all: {best.busbw_GB_s:.4f} GB/s a link at the best, {best.busbw_GB_s * 8:.2f} Gbit/s"
    )
    console.print(f"suggestion: {suggest(findings.rows).reason}", markup=False)
