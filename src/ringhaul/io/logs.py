"""What the machines want told becomes records of the standard library's logging.

All loggers are below "ringhaul". Records of the coordinator carry `facts`, a dict of what they
are about, for structured logs.
"""

import logging

from ringhaul.core.steps import Log


def log_effect(logger: logging.Logger, effect: Log) -> None:
    """Write one record."""
    level = logging.INFO if effect.important else logging.DEBUG
    if effect.urgent:
        level = logging.WARNING
    logger.log(level, "%s", effect.text, extra={"facts": dict(effect.facts)})
