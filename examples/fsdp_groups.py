"""FSDP inside each site, DiLoCo between the sites: peer groups, on the CPU with gloo.

    python examples/fsdp_groups.py --local-sites 2 --shards 2

starts a coordinator and two sites of two processes each on this machine. A site is one
`torch.distributed` world: FSDP shards the model over its processes. Shard i of every site is
in ringhaul's group i, so the shards with the same parameters are averaged with each other, in
parallel, and no process ever holds the whole model. Membership is common to all groups: a site
comes and goes as a whole. On machines of your own, on every machine of a site:

    torchrun --nnodes N --nproc-per-node SHARDS ... examples/fsdp_groups.py --coordinator HOST:48148

All sites need the same number of processes. If one process of a site is lost, torch ends the
others of that site; the other sites go on. Restart the site and it joins again.
"""

import os
import subprocess
import sys

from local import (
    end,
    explained,
    local_coordinator,
    make_parser,
    process_count,
    run_example,
    shielded,
)
from small_gpt import SmallGPT, Text

import ringhaul
import torch
from ringhaul.diloco import DiLoCo
from torch import distributed

STEPS = 60
INNER_STEPS = 10


def shard(model):
    """FSDP over the processes of this site."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def local_shards(model):
    """This process's part of each parameter, as NumPy arrays over the same memory."""
    return {
        name: parameter.to_local().detach().numpy()
        for name, parameter in model.named_parameters()
        if parameter.to_local().numel()
    }


def wait_complete(comm, outer):
    """Go on only when every site is there with all its processes: else its FSDP would wait."""
    shards = distributed.get_world_size()
    while comm.global_world_size != comm.world_size * shards:
        outer.admit()


def train(args):
    """One process of one site."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")  # of this site alone; from torchrun's variables
    rank = distributed.get_rank()
    with explained():
        text = Text(args.text)
    distributed.barrier()  # all of a site ask to be admitted at about the same time
    model = SmallGPT(width=32, layers=2, context=32)
    shard(model)
    inner = torch.optim.AdamW(model.parameters(), 3e-3, foreach=False)
    with ringhaul.connect(
        args.coordinator, group=rank, min_world_size=args.min_sites, name=f"{args.site}-{rank}"
    ) as comm:
        with explained():
            outer = DiLoCo(comm, local_shards(model), INNER_STEPS, codec=args.codec)
        wait_complete(comm, outer)
        while outer.position < STEPS:
            # another batch in each process; the same position in all groups
            place = comm.rank * distributed.get_world_size() + rank
            loss = model.loss(text.batch(outer.position, place, 8, 32))
            loss.backward()
            inner.step()
            inner.zero_grad()
            info = outer.step()
            if info is not None:
                if info.admitted:
                    wait_complete(comm, outer)
                print(
                    f"{comm.peer_id}: step {info.position}, shard {rank} of {info.world_size} "
                    f"sites, loss {loss.item():.3f}, digest {outer.state.digest().hex()[:8]}",
                    flush=True,
                )
    distributed.destroy_process_group()


def start_site(args, address, site, port):
    """What torchrun does, on this machine."""
    for rank in range(args.shards):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(args.shards),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        words = ["--coordinator", address, "--min-sites", str(args.local_sites)]
        yield subprocess.Popen(
            [sys.executable, __file__, *words, "--site", f"site{site}", "--codec", args.codec],
            env=environment,
        )


def main():
    """Start sites, or be a process of one."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--coordinator", default=os.environ.get("RINGHAUL_COORDINATOR", "127.0.0.1:48148"))
    add("--site", default="site")
    add("--min-sites", type=int, default=1)
    add("--codec", default="raw")
    add("--text")
    add("--local-sites", type=process_count)
    add("--shards", type=process_count, default=2)
    args = parser.parse_args()
    if not args.local_sites:
        train(args)
        return
    processes = []
    with local_coordinator() as address:
        try:
            for site in range(args.local_sites):
                port = 29500 + os.getpid() % 1000 + site
                with shielded():
                    processes.extend(start_site(args, address, site, port))
            sys.exit(max(abs(process.wait()) for process in processes))
        finally:
            end(processes)


if __name__ == "__main__":
    run_example(main)
