"""Train a small GPT on machines that come and go: sync, delayed, eager or streaming DiLoCo.

    python examples/diloco_gpt.py --local 2 --metrics out --plot out/loss.png

starts a coordinator and two peers on this machine. On machines of your own, start
`ringhaul coordinator --listen 0.0.0.0:48148` where all can reach it, then on each

    python examples/diloco_gpt.py --coordinator HOST:48148 --mode streaming --codec uint4

with the same options everywhere; `examples/README.md` has ports, NAT, systemd, SLURM and
docker. The text is the source of Python's standard library, or `--text FILE` (the same on all).
Every peer writes one JSON line a round into `--metrics` DIR/NAME.jsonl; `--plot` (needs
matplotlib) shows held-out bits per byte over time and over bytes sent. `--checkpoint FILE` is
written every 10 rounds, and read at the start if it exists.
"""

import json
import sys
import time
from pathlib import Path

from local import (
    add_network_options,
    check_plots,
    connect,
    explained,
    make_parser,
    run_example,
    start_local,
)
from small_gpt import SmallGPT, Text, learning_rate

import ringhaul.torch
import torch
from ringhaul.diloco import SGD, nesterov

CHECKPOINT_EVERY_ROUNDS = 10


def parse():
    """The command line; the same on all peers but for the network."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_network_options(parser)
    add("--mode", choices=["sync", "delayed", "eager", "streaming"], default="sync")
    add("--codec", default="raw", help="raw, fp16, uint8, uint4, ... of the outer gradients")
    add("--inner-steps", type=int, default=25, help="between two averages of a parameter")
    add("--steps", type=int, default=500, help="of the run's schedule; whole rounds")
    add("--max-seconds-per-round", type=float, help="this peer's, if it is a slow one")
    add("--outer-lr", type=float, help="default: 0.7, and 0.4 for delayed and eager")
    add("--outer-momentum", type=float, help="default: 0.9, and 0.5 for delayed and eager")
    add("--fragments", type=int, default=4, help="streaming")
    add("--overlap", type=int, default=5, help="streaming: inner steps")
    add("--width", type=int, default=64)
    add("--layers", type=int, default=4)
    add("--context", type=int, default=64)
    add("--batch", type=int, default=8)
    add("--lr", type=float, default=3e-3, help="of the inner AdamW")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--text", help="a file to train on")
    add("--metrics", metavar="DIR", help="JSON lines, a file a peer")
    add("--plot", metavar="FILE", help="with --local: a plot of the metrics")
    add("--checkpoint", metavar="FILE")
    return parser.parse_args()


def outer_optimizer(args):
    """DiLoCo's, unless other settings were asked for; no momentum leaves plain SGD."""
    is_late = args.mode in ("delayed", "eager")
    lr, momentum = args.outer_lr, args.outer_momentum
    if lr is None:
        lr = 0.4 if is_late else 0.7
    if momentum is None:
        momentum = 0.5 if is_late else 0.9
    return nesterov(lr, momentum) if momentum else SGD(lr)


def make_outer(args, model, inner, comm, resume):
    """The training loop that was asked for."""
    common = {
        "outer_optimizer": outer_optimizer(args),
        "codec": args.codec,
        "max_seconds_per_round": args.max_seconds_per_round,
        "resume": resume,
    }
    if args.mode == "sync":
        return ringhaul.torch.DiLoCo(model, inner, comm, args.inner_steps, **common)
    if args.mode == "streaming":
        return ringhaul.torch.StreamingDiLoCo(
            model, inner, comm, args.inner_steps,
            fragments=args.fragments, overlap=args.overlap, **common,
        )  # fmt: skip
    return ringhaul.torch.DelayedDiLoCo(
        model, inner, comm, args.inner_steps, eager=args.mode == "eager", **common
    )


class Journal:
    """Metrics of one peer: a line to the terminal and one to a file for every round."""

    def __init__(self, args, comm):
        self.began_at = time.time()
        self.sent_bytes = 0
        self.comm = comm
        self.peer = comm.peer_id
        self.file = None
        if args.metrics:
            Path(args.metrics).mkdir(parents=True, exist_ok=True)
            self.file = (Path(args.metrics) / f"{comm.peer_id}.jsonl").open("w")

    def write(self, info, outer, loss, bits):
        """One round."""
        self.sent_bytes += info.sent_bytes
        row = {
            "peer": self.peer,
            "at": time.time(),
            "seconds": round(time.time() - self.began_at, 3),
            "position": info.position,
            "round": info.round,
            "world_size": self.comm.world_size,
            "tokens": outer.weight_done,
            "sent_bytes": self.sent_bytes,
            "wait_s": round(info.wait_s, 4),
            "train_loss": round(loss, 4),
            "bits_per_byte": None if bits is None else round(bits, 4),
            "digest": outer.state.digest().hex()[:16],
        }
        if self.file:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        print(
            f"{self.peer}: step {info.position}, {self.comm.world_size} peers, loss {loss:.3f}, "
            + (f"held out {bits:.3f} bits per byte, " if bits is not None else "")
            + f"sent {self.sent_bytes / 1e6:.1f} MB, waited {info.wait_s:.2f} s",
            flush=True,
        )


def train(args):
    """One peer."""
    torch.set_num_threads(1 if args.device == "cpu" else torch.get_num_threads())
    with explained():
        text = Text(args.text)
    model = SmallGPT(args.width, args.layers, 4, args.context).to(args.device)
    inner = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.95), weight_decay=0.1)
    resume = None
    if args.checkpoint and Path(args.checkpoint).exists():
        resume = torch.load(args.checkpoint, weights_only=True)
    with connect(args) as comm:
        with explained():
            outer = make_outer(args, model, inner, comm, resume)
        journal = Journal(args, comm)
        is_round_end = True
        while outer.position < args.steps or not is_round_end:
            for group in inner.param_groups:
                group["lr"] = learning_rate(outer.position, args.steps, args.lr)
            batch = text.batch(outer.position, comm.rank, args.batch, args.context)
            loss = model.loss(batch.to(args.device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            inner.step()
            inner.zero_grad()
            info = outer.step(weight=args.batch * args.context)
            is_round_end = info is not None
            if not is_round_end:
                continue
            # one peer looks while the others go on, once a round: streaming has several ends in it
            looks = comm.rank == 0 and info.position % args.inner_steps == 0
            bits = text.bits_per_byte(model, args.device) if looks else None
            journal.write(info, outer, loss.item(), bits)
            is_due = info.position % (args.inner_steps * CHECKPOINT_EVERY_ROUNDS) == 0
            if args.checkpoint and is_due and comm.rank == 0:
                torch.save(outer.state_dict(), args.checkpoint + ".part")
                Path(args.checkpoint + ".part").replace(args.checkpoint)
        outer.finish()
        bits = text.bits_per_byte(model, args.device)
        print(f"{comm.peer_id}: done, {bits:.4f} bits per byte held out", flush=True)


def main():
    """Start peers, or be one."""
    args = parse()
    if not args.local:
        train(args)
        return
    if args.plot and not args.metrics:
        sys.exit("--plot needs --metrics DIR")
    if args.plot:
        check_plots()
    code = start_local(__file__, args.local)
    if args.plot and not code:
        from plots import plot_metrics

        plot_metrics(args.metrics, args.plot)
    sys.exit(code)


if __name__ == "__main__":
    run_example(main)
