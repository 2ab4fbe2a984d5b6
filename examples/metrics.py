"""Reads the metrics that the examples write."""

import json
from pathlib import Path


def read_metrics(folder):
    """All rows of all peers, by time."""
    rows = []
    for path in Path(folder).glob("*.jsonl"):
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:  # its writer was killed in the middle of it
                continue
    return sorted(rows, key=lambda row: row["at"])
