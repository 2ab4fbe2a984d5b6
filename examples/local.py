"""What the examples share: where the coordinator is, and a run of several peers on one machine."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys

import ringhaul


def make_parser(text):
    """For an example's options, by their whole names: peers get all of them but `--local`."""
    return argparse.ArgumentParser(
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def process_count(word):
    """So many processes: the type of an option."""
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"{word!r} is not 1 or more")
    return int(word)


def add_network_options(parser):
    """The options that say where and with whom."""
    group = parser.add_argument_group("network")
    group.add_argument(
        "--coordinator",
        default=os.environ.get("RINGHAUL_COORDINATOR", "127.0.0.1:48148"),
        metavar="HOST:PORT",
        help="default: RINGHAUL_COORDINATOR, else 127.0.0.1:48148",
    )
    group.add_argument("--name", help="of this peer, in messages and metrics")
    group.add_argument(
        "--listen", metavar="HOST:PORT", help="for other peers' data; default: any free port"
    )
    group.add_argument(
        "--advertise",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="where others reach this peer, if that is not where it listens (NAT)",
    )
    group.add_argument("--min-peers", type=int, default=1, help="wait until so many are there")
    group.add_argument(
        "--local",
        type=process_count,
        metavar="N",
        help="start a coordinator and N peers on this machine",
    )


def check_plots():
    """End here, not after the training, if there is nothing to draw a plot with."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        sys.exit(f"--plot needs matplotlib: pip install 'ringhaul[examples]' ({error})")


def run_example(main):
    """Call it; after Ctrl-C, end without a traceback."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)


@contextlib.contextmanager
def explained():
    """What cannot be set up as the options say ends the program with a line, not a traceback."""
    try:
        yield
    except (ValueError, OSError, ringhaul.ConnectError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def connect(args):
    """A communicator, as the options say."""
    with explained():
        return ringhaul.connect(
            args.coordinator,
            name=args.name,
            listen=args.listen,
            advertise=args.advertise,
            min_world_size=args.min_peers,
        )


@contextlib.contextmanager
def shielded():
    """Ctrl-C is not for the processes started here: the one that starts them ends them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which they inherit
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end(children):
    """Leave none of them behind."""
    for child in children:
        child.terminate()
    for child in children:
        child.wait()


@contextlib.contextmanager
def local_coordinator():
    """A coordinator on a free port of this machine; gives its address."""
    words = ["coordinator", "--listen", "127.0.0.1:0", "--new", "--json"]
    with shielded():
        child = subprocess.Popen(
            [sys.executable, "-m", "ringhaul", *words], stdout=subprocess.PIPE, text=True
        )
    try:
        yield json.loads(child.stdout.readline())["address"]
    finally:
        end([child])


def without_local(words):
    """The options of a peer, from those of the run."""
    kept, skip = [], False
    for word in words:
        if not skip and word.partition("=")[0] != "--local":
            kept.append(word)
        skip = word == "--local"
    return kept


def start_peer(script, address, name, words, **options):
    """One more process of the script: a peer, which starts no others."""
    words = [*without_local(words), "--coordinator", address, "--name", name]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with shielded():
        return subprocess.Popen([sys.executable, script, *words], env=environment, **options)


def start_local(script, count):
    """Run the script `count` times on this machine, wait; the worst exit code."""
    peers = []
    with local_coordinator() as address:
        try:
            peers.extend(
                start_peer(script, address, f"peer{i}", sys.argv[1:]) for i in range(count)
            )
            return max(abs(peer.wait()) for peer in peers)
        finally:
            end(peers)
