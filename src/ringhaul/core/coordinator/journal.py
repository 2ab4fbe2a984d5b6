"""What a coordinator remembers over its death: sessions and rings, and how they are saved.

Everything here can be lost: what the members report after a restart outranks it. It tells a
coordinator that was started again whom to await, whom not to take back, and which run it is.
"""

from dataclasses import dataclass

from ringhaul.core.coordinator.model import (
    Forget,
    Group,
    Peer,
    Run,
    Save,
    SavedGroup,
    SavedPeer,
    SavedRun,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """All that was saved before this start."""

    peers: tuple[SavedPeer, ...] = ()
    groups: tuple[SavedGroup, ...] = ()


def save_run(run: Run) -> None:
    """The run has another name or number than at the start."""
    run.effects.append(Save(SavedRun(run_id=run.run_id, incarnation=run.incarnation)))


def save_peer(run: Run, peer: Peer) -> None:
    """A session began."""
    saved = SavedPeer(
        id=peer.id,
        secret=peer.secret,
        group=peer.group,
        addresses=peer.addresses,
        min_world_size=peer.min_world_size,
        arrival=peer.arrival,
    )
    run.effects.append(Save(saved))


def forget_peer(run: Run, peer: Peer) -> None:
    """A session is over: it will not be taken back."""
    run.effects.append(Forget(peer.id))


def save_group(run: Run, group: Group) -> None:
    """A ring was proposed or opened, lost a member, or has committed to a state."""
    saved = SavedGroup(
        number=group.number,
        generation=group.generation,
        proposed_generation=group.proposed_generation,
        ring_order=group.ring_order,
        state=group.state,
    )
    run.effects.append(Save(saved))


def recall(run: Run, memory: Memory) -> None:
    """Put what was saved back; nobody is connected yet.

    Pre: the run knows no peers. Post: what holds between any two steps.
    """
    assert not run.peers
    for saved in memory.peers:
        run.peers[saved.id] = Peer(
            id=saved.id,
            secret=saved.secret,
            group=saved.group,
            addresses=saved.addresses,
            min_world_size=saved.min_world_size,
            arrival=saved.arrival,
            link=None,
            heard_at=0.0,
            awaits_reset=True,
        )
        run.arrivals = max(run.arrivals, saved.arrival)
    for peer in run.peers.values():
        run.group_of(peer)
    for group in memory.groups:
        run.groups[group.number] = Group(
            number=group.number,
            generation=group.generation,
            proposed_generation=group.proposed_generation,
            ring_order=tuple(p for p in group.ring_order if p in run.peers),
            state=group.state,
        )
