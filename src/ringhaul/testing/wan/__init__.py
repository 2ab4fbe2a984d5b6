"""A wide-area network on one machine: a network namespace and a TUN device per host, and a
process that is the wire between them. `Wan` is what tests and benchmarks use.

The TCP under test is the kernel's. Linux and root only; no `netem`, no `ip`.
"""

from ringhaul.testing.wan.emulator import Flow, Wan, WireStats, why_unavailable

__all__ = ["Flow", "Wan", "WireStats", "why_unavailable"]
