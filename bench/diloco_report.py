"""What `bench/diloco.py` has found, as a table and as a plot."""

import statistics
from dataclasses import dataclass
from typing import Any

from common import print_table


@dataclass(frozen=True)
class Setting:
    """One run."""

    method: str
    codec: str
    has_churn: bool
    seed: int


@dataclass
class Outcome:
    """What came of it."""

    bits_per_byte: float = 0.0
    sent_bytes: float = 0.0
    rounds: int = 0
    losses: int = 0
    joins: int = 0
    #: Rounds after which peers held different bits.
    differing: int = 0


def summed_up(found: dict[Setting, Outcome]) -> list[dict[str, Any]]:
    """One row for each setting but the seed."""
    rows: dict[tuple[str, str, bool], list[Outcome]] = {}
    for setting, outcome in found.items():
        rows.setdefault((setting.method, setting.codec, setting.has_churn), []).append(outcome)
    return [
        {
            "method": method,
            "codec": codec,
            "churn": has_churn,
            "seeds": len(outcomes),
            "bits_per_byte": statistics.median(o.bits_per_byte for o in outcomes),
            "spread": max(o.bits_per_byte for o in outcomes)
            - min(o.bits_per_byte for o in outcomes),
            "sent_mb_per_peer": statistics.median(o.sent_bytes for o in outcomes) / 1e6,
            "losses": sum(o.losses for o in outcomes),
            "joins": sum(o.joins for o in outcomes),
            "differing_rounds": sum(o.differing for o in outcomes),
        }
        for (method, codec, has_churn), outcomes in rows.items()
    ]


def report(rows: list[dict[str, Any]]) -> None:
    """The table for people."""
    base = next((r["bits_per_byte"] for r in rows if r["method"] == "data-parallel"), None)
    table = [
        [
            f"{row['method']}, {row['codec']}{', churn' if row['churn'] else ''}",
            f"{row['bits_per_byte']:.4f}",
            f"{row['spread']:.4f}",
            f"{row['bits_per_byte'] / base - 1:+.2%}" if base else "",
            f"{row['sent_mb_per_peer']:.2f}",
            f"{row['losses']} + {row['joins']}",
            str(row["differing_rounds"]),
        ]
        for row in rows
    ]
    head = ["what", "bits/byte", "spread", "to data-parallel", "MB sent", "lost + come", "differ"]
    print_table(head, table)


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Held-out bits per byte over bytes sent."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    marks = {"raw": "o", "uint8": "s", "uint4": "^"}
    colours = {
        name: f"C{index}" for index, name in enumerate(dict.fromkeys(r["method"] for r in rows))
    }
    for row in rows:
        if row["method"] == "one process":
            axes.axhline(row["bits_per_byte"], color="grey", ls=":", label="one process")
            continue
        axes.plot(
            row["sent_mb_per_peer"], row["bits_per_byte"], marks.get(row["codec"], "d"),
            color=colours[row["method"]], mfc="none" if row["churn"] else None,
            label=row["method"] if row["codec"] == "raw" and not row["churn"] else None,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("MB sent by each peer (circle raw, square uint8, triangle uint4)")
    axes.set_ylabel("held-out bits per byte (hollow: a peer lost or let in every few rounds)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
