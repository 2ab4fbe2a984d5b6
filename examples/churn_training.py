"""Peers are killed and join on a schedule while the GPT trains; the plot marks each event.

    python examples/churn_training.py --seconds 120 --every 10 --plot churn.png

starts a coordinator and three peers of `examples/diloco_gpt.py` on this machine, and then,
`--every` seconds after all that live have ended a round, kills one (SIGKILL) or starts one,
keeping between one and `--peers-max`.
Options after `--` go to `diloco_gpt.py`:

    python examples/churn_training.py --seconds 60 -- --mode streaming --codec uint4

At the end it checks that peers which made the same round held the same bits after it.
"""

import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from local import (
    check_plots,
    local_coordinator,
    make_parser,
    process_count,
    run_example,
    start_peer,
)

SCRIPT = str(Path(__file__).with_name("diloco_gpt.py"))


def parse():
    """The command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=120.0)
    add("--every", type=float, default=10.0, help="seconds before each event")
    add("--peers", type=process_count, default=3, help="at the start")
    add("--peers-max", type=process_count, default=4)
    add("--seed", type=int, default=0, help="of the schedule")
    add("--metrics", metavar="DIR", help="default: a temporary one")
    add("--plot", metavar="FILE", help="needs matplotlib")
    add("options", nargs="*", help="of diloco_gpt.py, after --")
    return parser.parse_args()


class Story:
    """The peers, and what happened to them."""

    def __init__(self, address, args, folder):
        self.address, self.args, self.folder = address, args, folder
        self.rng = random.Random(args.seed)
        self.peers = {}
        self.started = 0
        self.events = []

    def start(self):
        """One more peer."""
        name = f"peer{self.started}"
        self.started += 1
        words = ["--steps", "1000000000", "--metrics", str(self.folder), *self.args.options]
        self.peers[name] = start_peer(SCRIPT, self.address, name, words)
        self.note(f"join {name}")

    def kill(self):
        """Without goodbye."""
        name = self.rng.choice(sorted(self.peers))
        peer = self.peers.pop(name)
        peer.send_signal(signal.SIGKILL)
        peer.wait()
        self.note(f"kill {name}")

    def note(self, text):
        """Remember it for the plot."""
        self.events.append((time.time(), text))
        print(f"-- {text}: {len(self.peers)} peers", flush=True)

    def disturb(self):
        """The next event of the schedule."""
        is_join = self.rng.random() < 0.5
        if len(self.peers) >= self.args.peers_max or (len(self.peers) > 1 and not is_join):
            self.kill()
        else:
            self.start()

    def all_train(self):
        """Has every living peer ended a round?"""
        return all(
            any(path.stat().st_size for path in self.folder.glob(f"{name}-*.jsonl"))
            for name in self.peers
        )

    def check_alive(self):
        """Nobody may end but by our hand."""
        for name, peer in self.peers.items():
            if peer.poll() is not None:
                sys.exit(f"{name} ended by itself with exit code {peer.returncode}")


def check(rows):
    """The same bits after the same round; how many rounds several peers made."""
    by_position = {}
    for row in rows:
        by_position.setdefault(row["position"], {})[row["peer"]] = row["digest"]
    several = {at: found for at, found in by_position.items() if len(found) > 1}
    differing = [at for at, found in several.items() if len(set(found.values())) > 1]
    if differing:
        sys.exit(f"peers held different bits after positions {differing}")
    return len(several)


def run(story, args):
    """Events, each some seconds after all that live have ended a round."""
    began_at = next_at = None
    while began_at is None or time.monotonic() < began_at + args.seconds:
        time.sleep(0.1)
        story.check_alive()
        if not story.all_train():
            next_at = None
        elif next_at is None:
            began_at = began_at or time.monotonic()
            next_at = time.monotonic() + args.every
        elif time.monotonic() >= next_at:
            story.disturb()
            next_at = None


def main():
    """Train, disturb, check, plot."""
    args = parse()
    if args.plot:
        check_plots()
    folder = Path(args.metrics or tempfile.mkdtemp(prefix="churn-"))
    print(f"-- metrics in {folder}", flush=True)
    with local_coordinator() as address:
        story = Story(address, args, folder)
        try:
            for _ in range(args.peers):
                story.start()
            run(story, args)
        finally:
            for peer in story.peers.values():
                peer.kill()
                peer.wait()
    from metrics import read_metrics

    rows = read_metrics(folder)
    if not rows:
        sys.exit("no round ended: give it more --seconds")
    print(f"{check(rows)} rounds of several peers, the same bits on all after each")
    if args.plot:
        from plots import plot_metrics

        plot_metrics(folder, args.plot, story.events)


if __name__ == "__main__":
    run_example(main)
