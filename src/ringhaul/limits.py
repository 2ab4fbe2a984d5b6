"""Every bound and default, with its reason. Units stand at the end of the name."""

#: Spoken between all parts; a peer with another number is refused with both numbers named.
PROTOCOL_VERSION = 1
DEFAULT_PORT = 48148

# -- Messages -------------------------------------------------------------------------------

#: A proposal for PEERS_MAX peers fits; anything longer is garbage or an attack.
FRAME_BYTES_MAX = 1 << 20
#: Members of one group. The ring order of one proposal has to fit into a frame.
PEERS_MAX = 1024
#: Peers of all groups together, pending ones too: whoever says a valid hello is one.
RUN_PEERS_MAX = 4 * PEERS_MAX
#: Names, tags, reasons. Long enough for a sentence, short enough to be logged.
TEXT_LENGTH_MAX = 1000
NAME_LENGTH_MAX = 64
TAG_LENGTH_MAX = 200
#: Addresses one peer may offer: interfaces, families, and explicit ones.
ADDRESSES_MAX = 16
#: Arrays in one shared state: only their digest travels, this bounds what users may pass.
STATE_ENTRIES_MAX = 100_000
#: Of a coordinator, in milliseconds of its start; whoever names a higher one poisons the run.
INCARNATION_MAX = 1 << 53
#: Operations one group may have open at once (DESIGN: windows of 8 are usual).
OPEN_OPERATIONS_MAX = 10_000
#: Verdicts the coordinator and a peer remember, for who comes to a key later.
VERDICTS_KEPT_MAX = 65_536
#: Ends of `admit`s that a peer remembers because its caller has not come to them yet. Of older
#: ones it only knows that they failed.
VOTE_RESULTS_KEPT_MAX = 1024
#: Decisions a peer keeps, for a coordinator that is started again, until all members have
#: them: a second or two of verdicts.
DECISIONS_KEPT_MAX = 65_536
#: Control messages one side keeps until the other has them; a peer that does not
#: acknowledge so many is gone in all but name.
UNACKNOWLEDGED_MAX = 100_000
#: What one peer may tell a coordinator that was started again: decisions of a second or two name
#: up to a thousand members each.
TOLD_BYTES_MAX = 256 << 20

#: A status report fits into a frame even if all texts are long and of four bytes a character:
#: peers, groups and operations that it describes, ...
STATUS_PEERS_MAX = 512
STATUS_GROUPS_MAX = 64
STATUS_OPERATIONS_MAX = 32
#: ... peers it names per operation, characters of a text, and events the coordinator keeps.
STATUS_NAMES_MAX = 16
STATUS_TEXT_MAX = 160
STATUS_EVENTS_MAX = 64

# -- Time -----------------------------------------------------------------------------------

HEARTBEAT_INTERVAL_S = 1.0
#: A silent member is lost after this, if somebody waits for it, ...
SILENCE_BUSY_S = 5.0
#: ... else after this (a laptop's lid, a debugger).
SILENCE_IDLE_S = 30.0
#: A peer without control connection may resume its session for so long.
SESSION_GRACE_S = 10.0
#: A coordinator that was started again takes nobody for absent before this: peers redial
#: every REDIAL_INTERVAL_S. Without a journal nobody founds a run before, either.
RESUME_WAIT_S = 3.0
#: After a restart so many numbers of generations are left out: the last proposals may have
#: reached only peers that are away.
GENERATIONS_SKIPPED = 100
#: Peers wait so long for a coordinator that is away.
COORDINATOR_GRACE_S = 300.0
#: A peer hears nothing from the coordinator for so long: it closes and redials.
COORDINATOR_SILENCE_S = 8.0
#: A message on a control connection that comes in at less than LINK_RATE_MIN for so long: the
#: connection counts as broken. Less than SILENCE_BUSY_S by more than a heartbeat, so that its
#: peer dials another before it is lost.
CONTROL_STALLED_S = 3.0
#: Between two attempts to reach the coordinator again; the first follows at once.
REDIAL_INTERVAL_S = 0.25
#: One attempt to reach the coordinator, handshake included.
COORDINATOR_DIAL_S = 5.0
#: A link to the next rank is dialled for so long, all addresses in parallel.
LINK_DIAL_S = 3.0
#: Members report a proposal's links within this, or are evicted; covers a dial and long paths.
PROPOSAL_S = 3 * LINK_DIAL_S
#: A gap between two steps of the coordinator beyond this is time in which it did not run.
STALLED_CLOCK_S = 2.0
#: A connection that has not proved who it is within this is closed.
HANDSHAKE_S = 5.0
#: How long `close` waits for the coordinator's goodbye.
GOODBYE_S = 2.0
#: After so long a waiting call says in the log who has not come.
WAITING_REPORT_S = 30.0

# -- Data -----------------------------------------------------------------------------------

#: The unit of I/O: large enough that Python per segment does not show, small enough for the
#: cache and the pipe (measured, DESIGN section 5: 512 KiB to 1 MiB best).
SEGMENT_BYTES_MAX = 1024 * 1024
#: Below this a chunk is not cut further: the cost of a segment would outweigh the overlap
#: (1 MiB, 2 peers, loopback: 10 % faster than with 64 KiB).
SEGMENT_BYTES_MIN = 256 * 1024
#: Segments a chunk is cut into at least, if they are not too small: overlap within a step.
SEGMENTS_PER_CHUNK_MIN = 4
#: Segments that lie side by side travel as one, a run, where that takes no longer than RUN_S:
#: what Python does for each is then done once (64 MiB, 4 peers, loopback: 10 % of the CPU).
#: On long paths the end of a call would wait for the run of the slowest stream.
RUN_BYTES_MAX = 4 << 20
RUN_S = 0.02
#: A chunk is cut into so many runs at least: overlap within a step.
RUNS_PER_CHUNK_MIN = 2
#: A stream inside a payload is woken when so much is there, not at every packet: a wake-up
#: costs as much as copying 100 KiB (64 MiB, 2 peers, loopback: 1.05 GB/s without).
RECEIVE_LOW_WATER_BYTES = 256 * 1024
#: Bytes a sender may have under way, per link, for operations the receiver has not posted.
EAGER_BYTES_MAX = 4 << 20
#: Arrays up to this are sent unasked in a whole, as a rule: their grants may wait for a moment
#: (64 KiB, 2 peers, loopback: a seventh of the CPU of a call).
SMALL_ARRAY_BYTES = 256 * 1024
#: A segment counts as so many at least: one of a byte needs as much beside its payload.
EAGER_SEGMENT_BYTES = 512
#: TCP streams per link unless `streams=` says otherwise: on short paths (measured on
#: loopback: 2-4 best), ...
STREAMS_SHORT_PATH = 2
#: ... and on paths whose round trip is longer than this, where one stream's window is less
#: than bandwidth x delay (1 Gbit/s, 100 ms: one stream reaches 0.25, eight 0.85 of the link).
LONG_ROUND_TRIP_S = 0.005
STREAMS_LONG_PATH = 8
#: Streams are added while windows hold them back, up to this.
STREAMS_ADAPTIVE_MAX = 16
STREAMS_MAX = 64
#: Bytes that wait unsent in the kernel, per stream: what a slow stream has taken is late
#: (1 Gbit/s, 100 ms, 256 MiB, 8 streams: 90 % of the link, with 512 KiB 82 %).
NOT_SENT_BYTES = 128 * 1024
#: A receiver acknowledges after so many bytes or segments, or when a sweep comes by: on a fast
#: link seldom, as one costs as much as a segment (64 MiB, 4 peers: 3 % of the CPU with 2 MiB).
ACKNOWLEDGE_BYTES = 4 << 20
ACKNOWLEDGE_SEGMENTS = 32
#: Between two looks at what is under way: late acknowledgements, stalled streams.
SWEEP_INTERVAL_S = 0.05
#: What one stream holds back for so long, and thrice what others need, is sent on another.
RESEND_AFTER_S = 0.25
#: A link that moves less than the minimum rate (bytes/s) for so long counts as broken.
LINK_STALLED_S = 10.0
LINK_RATE_MIN = 1024
#: A receiver whose generation is not open yet says so at this interval; a sender that has not
#: heard it for a few of them judges the link as any other.
HOLD_INTERVAL_S = 0.5
HOLD_VALID_S = 3.0
#: Grants and acknowledgements that wait for a sender that does not read them.
REPLIES_BYTES_MAX = 1 << 20
#: A link that broke so often, without an operation committed over it in between, counts as
#: unusable until the next admission.
LINK_BREAKS_MAX = 3
#: The same, if it failed when it was dialled: once may be a lost packet or a busy machine.
DIAL_FAILURES_MAX = 2
#: Connections a listener holds before they have proved anything. If more come, the oldest of
#: the host that has most of them goes: strangers keep no honest peer out.
UNPROVED_CONNECTIONS_MAX = 256
#: Connections that the kernel keeps until they are accepted: a burst of strangers fits in.
ACCEPT_BACKLOG = 1024
#: Random numbers that the two ends of a data stream have to answer.
CHALLENGE_BYTES = 16
#: Steps the search for a ring around unusable pairs may take, thrice at most: it runs inside
#: a step of the coordinator (200 peers, half of all pairs unusable: 60 ms, 95 %: a second).
RING_SEARCH_STEPS_MAX = 20_000

# -- Shared state ---------------------------------------------------------------------------

#: What is hashed, compared, fetched and verified as one. BLAKE3 is as fast as it gets from
#: 256 KiB on; smaller ones make more headers, larger ones leave the cache (measured: 64 KiB
#: 3.5, 256 KiB to 1 MiB 4.3, 4 MiB 3.3 GB/s).
STATE_BLOCK_BYTES = 1 << 20
#: A requester asks so many holders at once, ...
STATE_HOLDERS_MAX = 16
#: ... and so many fellow requesters.
STATE_FELLOWS_MAX = 8
#: Requesters that one holder is named to, on average; who has fewer holders has its fellows.
STATE_REQUESTERS_PER_HOLDER = 32
#: Compressed names, dtypes and shapes in a report; what is longer is cut. 1024 reports that
#: wait for the last member are 32 MiB.
MANIFEST_BYTES_MAX = 32 * 1024
#: Connections to one source: on a short path one moves all, ...
STATE_STREAMS_SHORT_PATH = 1
#: ... on a long one windows limit each.
STATE_STREAMS_LONG_PATH = 4
#: Blocks asked for and not here yet, per connection: a slow source shall hold few of them.
STATE_WINDOW_BLOCKS_MAX = 16
#: One request, and what a source sends in one go: on a fast link the work for each is felt
#: (Python's part of 256 MiB on loopback: a sixth less CPU than with single blocks).
STATE_REQUEST_BYTES = 4 << 20
#: What a source delivers in so long may be under way (and two round trips more).
STATE_WINDOW_S = 0.5
#: A connection that was asked and sends nothing for so long is closed.
STATE_SILENCE_S = 5.0
#: ... and is dialled again so often, if it gave nothing.
STATE_DIALS_MAX = 6
#: Without holders, fellows that have nothing new for so long are given up.
STATE_STARVED_S = 10.0
#: Below this an upload budget, divided among requesters, would look like silence.
UPLOAD_BYTES_PER_S_MIN = 64 * 1024
