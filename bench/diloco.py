"""How well the training loops learn, for the same number of tokens, and what they send.

Trains the small GPT of `examples/small_gpt.py` as one process, data-parallel, and with DiLoCo,
delayed, eager and streaming, with each codec, undisturbed and with a peer lost or let in every
few rounds. Peers are threads of this process with real communicators, codecs and training
loops over loopback; only their speed is not that of separate machines, so no times are shown
(`bench/diloco_hidden.py` is for those). Prints held-out bits per byte (median over seeds) and
megabytes sent per peer, and checks that all peers hold the same bits after every round.
`--plot FILE` needs matplotlib.

    python bench/diloco.py --seeds 3 --plot diloco.png
    python bench/diloco.py --quick
"""

import argparse
import itertools
import json
import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import end_orderly_at_sigterm, origin, say
from diloco_report import Outcome, Setting, plot, report, summed_up

import ringhaul
from ringhaul.testing.threads import Cluster, Driver

try:
    import torch
except ImportError:
    sys.exit("skipped: this benchmark needs torch")

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from small_gpt import SmallGPT, Text, learning_rate

import ringhaul.torch

#: Far more than any call takes on a busy machine.
PATIENCE_S = 300.0
LOOPS = ("diloco", "delayed", "eager", "streaming")


class Told(Exception):
    """This peer is killed."""


@dataclass
class Peer:
    """One thread's peer."""

    told_to_die: threading.Event = field(default_factory=threading.Event)
    digests: dict[int, bytes] = field(default_factory=dict)
    sent_bytes: int = 0
    inner_steps: int = 0


class Run:
    """One setting, with its peers."""

    def __init__(self, setting: Setting, args: argparse.Namespace, text: Text) -> None:
        self.setting, self.args, self.text = setting, args, text
        self.tokens = args.batch * args.context
        self.budget = args.peers * args.steps * self.tokens
        #: One entry for each round of the first peer.
        self.rounds: queue.Queue[int] = queue.Queue()
        self.outcome = Outcome()
        self.peers: list[Peer] = []

    def model(self) -> Any:
        """The same on all peers of a seed."""
        args = self.args
        return SmallGPT(args.width, args.layers, 4, args.context, self.setting.seed)

    def inner(self, model: Any) -> Any:
        """The inner optimizer."""
        return torch.optim.AdamW(
            model.parameters(), lr=self.args.lr, betas=(0.9, 0.95), weight_decay=0.1
        )

    def inner_step(self, model: Any, inner: Any, place: tuple[int, int], done: float) -> None:
        """One inner step on the batch of `place`; `done` is the share of the tokens trained on."""
        args = self.args
        for group in inner.param_groups:
            group["lr"] = learning_rate(int(done * args.steps), args.steps, args.lr)
        batch = self.text.batch(*place, args.batch, args.context, self.setting.seed)
        model.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        inner.step()
        inner.zero_grad()

    # -- the methods --------------------------------------------------------------------------

    def train_alone(self) -> None:
        """As many tokens, one batch after the other."""
        model = self.model()
        inner = self.inner(model)
        count = self.args.steps * self.args.peers
        for step in range(count):
            self.inner_step(model, inner, (step, 0), step / count)
        self.outcome.bits_per_byte = self.text.bits_per_byte(model)

    def train_data_parallel(self, comm: ringhaul.Communicator, peer: Peer) -> None:
        """Gradients averaged in every step, as one flat array."""
        args = self.args
        model = self.model()
        inner = self.inner(model)
        shapes = list(model.parameters())
        for step in range(args.steps):
            for group in inner.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.lr)
            batch = self.text.batch(step, comm.rank, args.batch, args.context, self.setting.seed)
            model.loss(batch).backward()
            flat = torch.cat([parameter.grad.ravel() for parameter in shapes])
            info = comm.all_reduce(flat, "avg", codec=self.setting.codec)
            peer.sent_bytes += info.sent_bytes
            start = 0
            for parameter in shapes:
                stop = start + parameter.numel()
                parameter.grad.copy_(flat[start:stop].view_as(parameter))
                start = stop
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            inner.step()
            inner.zero_grad()
        self.evaluate(comm, peer, model)

    def make_outer(self, model: Any, inner: Any, comm: ringhaul.Communicator) -> Any:
        """The training loop."""
        args, codec = self.args, self.setting.codec
        kinds = ringhaul.torch
        match self.setting.method:
            case "diloco":
                return kinds.DiLoCo(model, inner, comm, args.inner_steps, codec=codec)
            case "delayed" | "eager" as method:
                late = ringhaul.diloco.nesterov(args.delayed_lr, args.delayed_momentum)
                return kinds.DelayedDiLoCo(
                    model, inner, comm, args.inner_steps, eager=method == "eager",
                    outer_optimizer=late, codec=codec,
                )  # fmt: skip
            case _:
                return kinds.StreamingDiLoCo(
                    model, inner, comm, args.inner_steps, fragments=args.fragments,
                    overlap=args.overlap, codec=codec,
                )  # fmt: skip

    def train_loop(self, comm: ringhaul.Communicator, peer: Peer) -> None:
        """Until all peers together have trained on the budget."""
        model = self.model()
        inner = self.inner(model)
        outer = self.make_outer(model, inner, comm)
        trained = self.agree(comm, 0.0)
        is_first = peer is self.peers[0]
        while trained < self.budget:
            members, began_at, info = comm.world_size, outer.position, None
            while info is None:
                place = (outer.position, comm.rank)
                own = (outer.position - began_at) * members * self.tokens
                self.inner_step(model, inner, place, (trained + own) / self.budget)
                peer.inner_steps += 1
                if peer.told_to_die.is_set():
                    comm._runtime.abandon()
                    raise Told
                info = outer.step(weight=self.tokens)
            peer.sent_bytes += info.sent_bytes
            peer.digests[info.position] = outer.state.digest()
            trained += (info.position - began_at) * members * self.tokens
            if is_first:
                self.rounds.put(info.position)
            trained = self.agree(comm, trained)
        outer.finish()
        self.outcome.rounds = outer.round
        self.evaluate(comm, peer, model)

    def agree(self, comm: ringhaul.Communicator, trained: float) -> float:
        """How much was trained on: a newcomer learns it here."""
        flag = np.array([trained])
        comm.all_reduce(flag, "max")
        return float(flag[0])

    def evaluate(self, comm: ringhaul.Communicator, peer: Peer, model: Any) -> None:
        """Once; all peers have the same parameters."""
        if peer is self.peers[0]:
            self.outcome.bits_per_byte = self.text.bits_per_byte(model)
        comm.barrier()
        comm.close()

    # -- the run ------------------------------------------------------------------------------

    def start(self, cluster: Cluster[ringhaul.Communicator]) -> Any:
        """One more peer."""
        peer = Peer()
        self.peers.append(peer)
        is_loop = self.setting.method in LOOPS
        train = self.train_loop if is_loop else self.train_data_parallel
        driver: Driver[ringhaul.Communicator] = cluster.driver()
        return driver.begin(lambda comm: train(comm, peer))

    def go(self) -> Outcome:
        """Train."""
        if self.setting.method == "one process":
            self.train_alone()
            return self.outcome

        def connect(address: str) -> ringhaul.Communicator:
            founders = 1 if self.setting.has_churn else self.args.peers
            return ringhaul.connect(address, min_world_size=founders)

        with Cluster(connect) as cluster:
            futures = [self.start(cluster) for _ in range(self.args.peers)]
            if self.setting.has_churn:
                self.disturb(cluster, futures)
            futures[0].exception(PATIENCE_S)
            for peer in self.peers:  # who comes only now
                peer.told_to_die.set()
            for future in futures:
                error = future.exception(PATIENCE_S)
                if error is not None and not isinstance(error, Told):
                    raise error
        by_position: dict[int, set[bytes]] = {}
        for peer in self.peers:
            for position, digest in peer.digests.items():
                by_position.setdefault(position, set()).add(digest)
        self.outcome.differing = sum(len(digests) > 1 for digests in by_position.values())
        steps = sum(peer.inner_steps for peer in self.peers) or self.args.steps * self.args.peers
        sent = sum(peer.sent_bytes for peer in self.peers)
        self.outcome.sent_bytes = sent * self.args.steps / steps
        return self.outcome

    def disturb(self, cluster: Cluster[ringhaul.Communicator], futures: list[Any]) -> None:
        """Every few rounds a peer is lost, or one comes."""
        alive = list(self.peers)
        fragments = self.args.fragments if self.setting.method == "streaming" else 1
        every = self.args.churn_every * fragments
        for number in itertools.count(1):
            while not futures[0].done():
                try:
                    self.rounds.get(timeout=0.2)
                    break
                except queue.Empty:
                    continue
            if futures[0].done():
                return
            if number % every:
                continue
            if len(alive) >= self.args.peers:
                alive.pop().told_to_die.set()
                self.outcome.losses += 1
            else:
                futures.append(self.start(cluster))
                alive.append(self.peers[-1])
                self.outcome.joins += 1


def settings(args: argparse.Namespace) -> Iterator[Setting]:
    """All that were asked for; the baselines first."""
    for method, codec in itertools.product(args.methods, args.codecs):
        if method == "one process":
            if codec == args.codecs[0]:
                yield from (Setting(method, "none", False, seed) for seed in range(args.seeds))
            continue
        for has_churn in (False, True) if method in LOOPS else (False,):
            if has_churn and codec not in args.churn_codecs:
                continue
            for seed in range(args.seeds):
                yield Setting(method, codec, has_churn, seed)


def parse() -> argparse.Namespace:
    """The command line."""
    words = lambda text: [word for word in text.split(",") if word]  # noqa: E731
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--peers", type=int, default=4)
    add("--steps", type=int, default=500, help="inner steps of each peer")
    add("--inner-steps", type=int, default=25, help="to a round")
    add("--methods", type=words, default=["one process", "data-parallel", *LOOPS])
    add("--codecs", type=words, default=["raw", "uint8", "uint4"])
    add("--churn-codecs", type=words, default=["raw", "uint8", "uint4"])
    add("--churn-every", type=int, default=3, help="rounds between two events")
    add("--fragments", type=int, default=3)
    add("--overlap", type=int, default=3)
    add("--delayed-lr", type=float, default=0.4, help="outer learning rate of the delayed ones")
    add("--delayed-momentum", type=float, default=0.5)
    add("--seeds", type=int, default=3)
    add("--width", type=int, default=48)
    add("--layers", type=int, default=3)
    add("--context", type=int, default=32)
    add("--batch", type=int, default=8)
    add("--lr", type=float, default=4e-3)
    add("--text", help="train on this file; default: Python's standard library")
    add("--plot", metavar="FILE")
    add("--quick", action="store_true", help="a smoke test of some seconds: no figures")
    add("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.peers, args.steps, args.inner_steps, args.seeds = 3, 24, 4, 1
        args.codecs, args.churn_codecs, args.churn_every = ["uint8"], ["uint8"], 2
        args.methods = ["data-parallel", "diloco", "delayed", "streaming"]
        args.width, args.layers, args.batch, args.overlap = 16, 3, 2, 1
    return args


def main() -> None:
    """Train all, print."""
    args = parse()
    end_orderly_at_sigterm()
    torch.set_num_threads(1)
    text = Text(args.text, bytes_max=4 << 20)
    found: dict[Setting, Outcome] = {}
    for setting in settings(args):
        found[setting] = Run(setting, args, text).go()
        say(f"  {setting}: {found[setting]}")
    rows = summed_up(found)
    facts = origin() | {name: value for name, value in vars(args).items() if name != "json"}
    if args.json:
        print(json.dumps(facts | {"rows": rows}))
    else:
        report(rows)
        print(json.dumps(facts))
    if args.plot:
        plot(rows, args.plot)
    if any(row["differing_rounds"] for row in rows):
        sys.exit("peers held different bits")


if __name__ == "__main__":
    main()
