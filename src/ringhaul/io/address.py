"""Addresses as users write them. Decides nothing about which of them is tried."""

import ipaddress

_EXPECTED = "expected HOST:PORT, like 10.0.0.1:48148, trainer.example:48148 or [::1]:48148"
_PORT_MAX = 65535
#: Of a name with all its dots, and what a message carries.
_HOST_LENGTH_MAX = 255


def parse_address(text: str, default_port: int) -> tuple[str, int]:
    """Split `HOST:PORT` into host and port; `HOST` alone gets `default_port`.

    An IPv6 address stands in brackets, which are not part of the host returned. `:PORT` gives
    an empty host, which means every interface to whoever listens. No name is looked up.

    Raises:
        ValueError: `text` is no address; says what is expected.
    """
    host, port_text = _split(text)
    if port_text is None:
        return host, default_port
    is_number = port_text.isascii() and port_text.isdecimal() and len(port_text) <= 5
    if not is_number or int(port_text) > _PORT_MAX:
        raise ValueError(f"{text!r}: no port from 0 to {_PORT_MAX} after the colon; {_EXPECTED}")
    return host, int(port_text)


def _split(text: str) -> tuple[str, str | None]:
    """Part the host from what follows its colon; None without a colon."""
    if text.startswith("["):
        return _split_ipv6(text)
    if text.count(":") > 1:
        raise ValueError(f"{text!r}: an IPv6 address needs brackets; {_EXPECTED}")
    host, colon, port_text = text.partition(":")
    if not text or any(c.isspace() or c in "[]/@%" or not c.isprintable() for c in host):
        raise ValueError(f"{text!r} is no address; {_EXPECTED}")
    if len(host) > _HOST_LENGTH_MAX:
        raise ValueError(f"{text[:40]!r}...: no host name is that long; {_EXPECTED}")
    return host, port_text if colon else None


def _split_ipv6(text: str) -> tuple[str, str | None]:
    """Part `[HOST]` from `:PORT`."""
    host, bracket, rest = text[1:].partition("]")
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        raise ValueError(f"{text!r}: no IPv6 address in the brackets; {_EXPECTED}") from None
    if not bracket or (rest and not rest.startswith(":")):
        raise ValueError(f"{text!r} is no address; {_EXPECTED}")
    return host, rest[1:] if rest else None
