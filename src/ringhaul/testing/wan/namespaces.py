"""Network namespaces and TUN devices by system call: `ip` and its packages are not needed."""

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ringhaul.testing.wan.packets import address_of

_CLONE_NEWNET = 0x40000000
# linux/if_tun.h
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4 = 0x01, 0x02
# linux/sockios.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCSIFADDR, _SIOCSIFNETMASK = 0x8916, 0x891C
_SIOCSIFMTU, _SIOCSIFTXQLEN = 0x8922, 0x8943
_IFF_UP = 0x1
#: The device holds a burst until the wire process reads it; what is dropped is the wire's to say.
_QUEUE_PACKETS = 20_000
_DEVICE = "wan0"


@dataclass
class Host:
    """A namespace and its device, as file descriptors; the namespace lasts as long as they do."""

    namespace: int
    tun: int


def make_host(number: int, mtu: int, settings: dict[str, str]) -> Host:
    """A namespace with an address of its own, a device towards the wire, and a loopback.

    Args:
        number: gives the address.
        mtu: of the device.
        settings: below /proc/sys/net, as `{"ipv4/tcp_congestion_control": "cubic"}`.
    """

    def act() -> Host:
        _check(_libc().unshare(_CLONE_NEWNET))
        for name, value in {"ipv6/conf/all/disable_ipv6": "1", **settings}.items():
            _write_setting(name, value)
        tun = _open_tun()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            _request(sock, _DEVICE, _SIOCSIFADDR, _address(address_of(number)))
            _request(sock, _DEVICE, _SIOCSIFNETMASK, _address("255.255.255.0"))
            _request(sock, _DEVICE, _SIOCSIFMTU, struct.pack("i", mtu))
            _request(sock, _DEVICE, _SIOCSIFTXQLEN, struct.pack("i", _QUEUE_PACKETS))
            for device in (_DEVICE, "lo"):
                answer = _request(sock, device, _SIOCGIFFLAGS, b"")
                (flags,) = struct.unpack_from("H", answer, 16)
                _request(sock, device, _SIOCSIFFLAGS, struct.pack("H", flags | _IFF_UP))
        return Host(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC), tun)

    return _in_a_thread(act)


@contextlib.contextmanager
def inside(namespace: int) -> Iterator[None]:
    """Let this thread be in that namespace: its sockets, and what it starts meanwhile."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc().setns(namespace, _CLONE_NEWNET))
        try:
            yield
        finally:
            _check(_libc().setns(home, _CLONE_NEWNET))
    finally:
        os.close(home)


def why_unavailable() -> str | None:
    """Why no host can be made here; None if one can."""
    if not sys.platform.startswith("linux"):
        return "the emulated network needs Linux"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "the emulated network needs /dev/net/tun (load the module, be root)"
    try:
        host = make_host(0, 1500, {})
    except OSError as error:
        return f"the emulated network needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN): {error}"
    os.close(host.namespace)
    os.close(host.tun)
    return None


def _open_tun() -> int:
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", _DEVICE.encode(), flags))
    fcntl.ioctl(tun, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
    return tun


def _write_setting(name: str, value: str) -> None:
    """Write below /proc/sys/net, which shows the namespace of the thread that looks."""
    path = Path("/proc/sys/net") / name
    if not path.exists():
        return
    try:
        path.write_text(value)
    except OSError as error:
        hint = (
            " (is it in net.ipv4.tcp_allowed_congestion_control?)" if "congestion" in name else ""
        )
        raise OSError(error.errno, f"{path} = {value}: {error.strerror}{hint}") from None


def _request(sock: socket.socket, device: str, number: int, body: bytes) -> bytes:
    return fcntl.ioctl(sock, number, device.encode().ljust(16, b"\0") + body.ljust(24, b"\0"))


def _address(text: str) -> bytes:
    """A `struct sockaddr_in`."""
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))


def _in_a_thread(act: Callable[[], Host]) -> Host:
    """Run in a thread of its own: `unshare` changes the calling thread only, for good."""
    results: list[Host] = []
    errors: list[OSError] = []

    def run() -> None:
        try:
            results.append(act())
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
