"""The interface between the engine and a broker: fetch, commit, send. This docstring is the specification.

**Positions.** A message at offset 7 is *fetched* when `fetch` returned it, *finished* when its
effect or its dead letter is durable, and *committed* when the group's offset at the broker is 8 or
more. The transport decides when to fetch; the engine alone decides what is finished. A transport
commits exactly what the engine gave it, never what it has fetched, and never anything by itself:
automatic commits are off.

**Assignments.** `Consumer.start` subscribes. From then on the broker's group protocol gives
partitions and takes them away, and the transport calls the `AssignmentListener`:

* `assigned` before `fetch` returns the first message of a partition, with the position it is read from, which the
  engine may commit. Each assignment of a partition gets an *epoch*, a number greater than all
  earlier ones of this consumer; every message carries the epoch under which it was fetched.
  Messages of an ended epoch are never returned. Positions of an ended epoch are never committed:
  they are dropped silently, since the partition's next owner starts from what was committed.
  `assigned` is called without partitions if the group gave this consumer none, because other
  members have them all. A message carries its topic's ID, so a partition waits until the broker has
  sent that ID: the topic may have been recreated since the last time.
* `revoked` while the partitions still belong to this consumer. The engine finishes or rolls back its open work within
  `Subscription.drain_timeout`, and returns the positions to commit. The transport commits them and
  waits for the answer before it gives the partitions back.
* `lost` when they already belong to another member: nothing is committed any more.
* `failed` when a partition cannot be read from its position (the position is outside the log, or a batch is
  broken): the partition stays assigned but is no longer read, and all others go on. A transport
  never jumps to the earliest or the latest offset by itself.

Listener calls of one consumer never overlap. A listener must not raise; if it does, the transport
treats the partitions as revoked without positions and reports the error through `health`.

**Where reading starts.** At the group's committed offset. If there is none, at
`Subscription.start_from`, as an explicit position. An engine whose database knows a better position
uses `seek`. A partition without a leader is assigned once it has one, and delays no other.

**Questions.** `describe`, `survey` and `since` ask about many partitions at a time, on connections
that fetch nothing: a broker answers a request that follows a fetch only after the fetch.

**Fetching.** `fetch` returns available messages, in offset order within a partition: at most
`limit` messages, or an empty list after `timeout` seconds without any. It returns as soon as it has
one message, and does not linger. The caller must call it again and again, even while paused (then
it returns nothing), since a consumer that is not polled leaves its group. A caller never cancels a
fetch but waits for it, `timeout` at most. Offsets may have gaps (control records of transactions,
compaction); of transactions, only committed records are returned (`read_committed`). A tombstone
has the value None. Headers keep their order, duplicates and None values. A header name that is not
UTF-8 comes with its bytes escaped, and never makes the record unreadable. After an error in the
client no fetched record is skipped.

**Passing over.** If a log goes on without a message (the markers of transactions, aborted and
compacted records), `passed` returns how far a partition is read: every message below that offset
was returned by `fetch`. It belongs to the `fetch` that returned last; call it before the next one.
It leaves out a partition with fetched messages that are not yet returned, and a held partition. A
position carries its epoch, so `seek` and a new assignment make it void.

**Pausing.** `pause` stops delivery for all partitions, including those assigned later, until
`resume`; a rebalance does not change that. A fetch that is already running may still return
messages.

`hold` does the same for single partitions, until `release`, until the assignment ends, or until the
consumer stops. The other partitions go on. A partition that is not assigned is ignored.

**Going elsewhere.** `seek` reads an assigned partition from another offset, under a new epoch,
which it returns at once. The old epoch is over, though a fetch that is already running may still
return some of its messages. It works on a held partition, which stays held; a failed partition is
read again. A partition that is no longer assigned is ignored.

**Sending.** `Producer.send` returns when every record is acknowledged by all in-sync replicas or
has failed, with one answer per record, in order. It never raises for a record. The producer is
idempotent. `place` does the same, and returns where each record went. A record goes to the
partition that it names, else to the one that its key chooses.

**Reading aside.** A `LogReader` reads one topic from given offsets, or from the beginning, up to
each partition's end at the reader's start. It belongs to no group, commits nothing, and takes
nothing from other readers. Its `fetch` works like a consumer's; `finished` is true when nothing is
left, even if the last offsets have no message. A position that retention has overtaken raises
`PartitionUnusable`.

**Members.** `Consumer.member` returns the ID by which the broker's group knows a consumer. A
process that has died leaves no group, and the broker waits for it until its session expires. A
caller that knows the IDs of its members can tell the broker sooner by `Transport.leave`. A member
that is still alive loses its partitions, and joins again.

**Stopping.** `Consumer.stop` waits for the listener for as long as it takes. It does not wait for
other members: if the group does, this member leaves by another connection.

**Errors.** The transport survives passing trouble (broker down, request timed out): `fetch` returns
nothing until it is over. Lasting trouble is raised as `StartError` (start: authentication,
authorisation, unknown topics) or as `Unavailable` (commit: no answer from the broker; the engine
commits again later, with newer positions).

**Health.** `health()` is cheap and callable from any thread: it returns how long ago the client's
own loop last ran, and the fatal error if there was one. The watchdog ends the process by it.

Implementations: `consumerkit.transports.confluent`, `consumerkit.transports.aiokafka`,
`consumerkit.transports.memory`. Each passes `tests/contracts`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from consumerkit.errors import PartitionUnusable
from consumerkit.message import Headers, Message, TopicPartition

StartFrom = Literal["earliest", "latest"]


class Position(NamedTuple):
    """The offset of the next message to read, under one assignment.

    Attributes:
        offset: The message's offset.
        epoch: The assignment's epoch.
        note: Text that is committed with the offset.
    """

    offset: int
    epoch: int
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """What one consumer reads.

    Args:
        group: The consumer group.
        topics: Names of existing topics.
        start_from: Where a group without a committed offset starts.
        drain_timeout: Seconds the listener may take in `revoked`.
        client_id: Shown in the broker's logs and quotas.
        fetch_bytes: Bytes that the client may buffer beyond what was fetched.
    """

    group: str
    topics: tuple[str, ...]
    start_from: StartFrom = "earliest"
    drain_timeout: float = 20.0
    client_id: str = "consumerkit"
    fetch_bytes: int = 16 * 1024 * 1024


class Span(NamedTuple):
    """The offsets of one partition that are read: from `start` up to, but without, `end`."""

    start: int
    end: int


class Record(NamedTuple):
    """One record to send; if `partition` is None, the key chooses it."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None


class Acknowledged(NamedTuple):
    """The place of a record; the offset is -1 if the broker had it already and did not say where."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class SendFailure:
    """Why a record was not acknowledged.

    Attributes:
        code: The broker's or the client's name for it, such as `UNKNOWN_TOPIC_OR_PART`; for people and logs.
        message: The same in words.
        permanent: Whether the same record cannot be accepted as things are (missing topic, not
            authorised, too large), so that trying again soon is pointless.
    """

    code: str
    message: str
    permanent: bool


def failure_in(answer: Acknowledged | SendFailure) -> SendFailure | None:
    """Return a record's answer as `Producer.send` gives it: None when acknowledged."""
    return answer if isinstance(answer, SendFailure) else None


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """The broker's description of a topic."""

    name: str
    topic_id: str
    partitions: int


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    """The broker's description of an assigned partition.

    Attributes:
        topic_id: Tells the topic from a later one with the same name.
        start: The first offset in the log.
        end: The offset that the next record will get.
        committed: The group's committed offset, or None.
        note: The text that was committed with it.
    """

    topic_id: str
    start: int
    end: int
    committed: int | None = None
    note: str = ""


class Surveyed(NamedTuple):
    """The broker's description of one partition of a topic, whichever member has it.

    Attributes:
        span: The offsets in the log; None if the partition has no leader now.
        committed: The group's committed offset, or None.
        note: The text that was committed with it.
    """

    span: Span | None
    committed: int | None = None
    note: str = ""


class Survey(NamedTuple):
    """The broker's description of a topic and all its partitions."""

    topic_id: str
    partitions: Mapping[int, Surveyed]


@dataclass(frozen=True, slots=True)
class Health:
    """The health of a consumer.

    Attributes:
        idle: Seconds since the client's own loop last ran; near zero in a healthy consumer, whatever the traffic.
        error: The fatal error in words, or None.
    """

    idle: float
    error: str | None


class AssignmentListener(Protocol):
    """Called at every change of assignment; see the module's docstring."""

    async def assigned(self, partitions: Mapping[TopicPartition, Position]) -> None:
        """Record new partitions: where each is read from, and under which epoch."""

    async def revoked(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Position]:
        """Finish with the partitions and return the positions to commit."""
        ...

    async def lost(self, partitions: Collection[TopicPartition]) -> None:
        """Forget the partitions."""

    async def failed(self, partition: TopicPartition, error: PartitionUnusable) -> None:
        """Record that the partition is no longer read."""


class Consumer(Protocol):
    """One member of one consumer group."""

    async def start(self, listener: AssignmentListener) -> None:
        """Connect and subscribe.

        Raises:
            StartError: The broker refused, or could not be reached in time.
        """

    async def fetch(self, limit: int, timeout: float) -> list[Message]:
        """Return available messages, at most `limit`; wait `timeout` seconds for the first."""
        ...

    def passed(self) -> Mapping[TopicPartition, Position]:
        """Return where reading continues after the last `fetch`, at least for partitions that end without a message."""
        ...

    async def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Commit the positions whose epochs are still current; return when the broker has them.

        Raises:
            Rebalancing: The group's members change: commit again later, unless the partitions are revoked.
            Unavailable: The broker did not confirm.
        """

    async def pause(self) -> None:
        """Deliver nothing until `resume`."""

    async def resume(self) -> None:
        """Deliver again."""

    async def hold(self, partitions: Collection[TopicPartition]) -> None:
        """Deliver nothing of these partitions until `release`."""

    async def release(self, partitions: Collection[TopicPartition]) -> None:
        """Deliver these partitions again."""

    def seek(self, partition: TopicPartition, offset: int) -> int:
        """Read a partition from `offset` from now on; return the new epoch, which its messages will carry."""
        ...

    async def describe(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, PartitionInfo]:
        """Ask the broker about assigned partitions, now.

        Leaves out partitions that are no longer assigned, and those without a leader.

        Raises:
            Unavailable: The broker did not answer, or does not know a topic now; an earlier answer
                does not count.
        """
        ...

    async def survey(self, topic: str) -> Survey:
        """Ask the broker now about all partitions of a topic, whichever members have them.

        Raises:
            Unavailable: The broker did not answer, or does not know the topic now.
        """
        ...

    async def since(self, partition: TopicPartition, milliseconds: int) -> int:
        """Return a partition's first offset whose record has this timestamp or a later one; without any, its end.

        Raises:
            Unavailable: The broker did not answer.
        """
        ...

    async def stop(self) -> None:
        """Let the listener finish with all partitions, commit what it returns, and leave the group."""

    def health(self) -> Health:
        """Return the consumer's health; callable from any thread."""
        ...

    def member(self) -> str:
        """Return the ID by which the group knows this consumer, or an empty text; callable from any thread."""
        ...


class Producer(Protocol):
    """Sends records and waits for their acknowledgements."""

    async def start(self) -> None:
        """Connect."""

    async def send(self, records: Sequence[Record]) -> list[SendFailure | None]:
        """Send all records; return one answer per record, in order: None when acknowledged."""
        ...

    async def stop(self) -> None:
        """Finish the sends that are running, and disconnect."""


class PlacingProducer(Producer, Protocol):
    """A producer that can return where records went."""

    async def place(self, records: Sequence[Record]) -> list[Acknowledged | SendFailure]:
        """Send all records as `send` does; return each one's place in the log, or why it has none."""
        ...


class LogReader(Protocol):
    """Reads one topic, once, outside any group; see the module's docstring."""

    async def start(self) -> Mapping[int, Span]:
        """Connect, and return what will be read of each partition.

        Raises:
            StartError: The topic is missing, or the broker refused or could not be reached in time.
        """
        ...

    async def fetch(self, limit: int, timeout: float) -> list[Message]:
        """Return available messages, at most `limit`; wait `timeout` seconds for the first.

        Raises:
            PartitionUnusable: A partition cannot be read from its position.
        """
        ...

    @property
    def positions(self) -> Mapping[int, int]:
        """How far each partition is read; a partition's end if nothing of it is left."""
        ...

    @property
    def finished(self) -> bool:
        """Whether everything was returned."""
        ...

    async def stop(self) -> None:
        """Disconnect."""


class Transport(Protocol):
    """A broker, as far as consumerkit needs one."""

    def consumer(self, subscription: Subscription) -> Consumer:
        """Make a consumer; nothing happens before its `start`."""
        ...

    def producer(self) -> PlacingProducer:
        """Make a producer; nothing happens before its `start`."""
        ...

    def reader(self, topic: str, offsets: Mapping[int, int] | None = None) -> LogReader:
        """Make a reader; nothing happens before its `start`.

        Args:
            topic: The topic's name.
            offsets: Where to begin, by partition; the others begin with their oldest record.
        """
        ...

    async def topics(self, names: Collection[str]) -> dict[str, TopicInfo]:
        """Describe the topics that exist; never creates one.

        Raises:
            StartError: The broker refused, or could not be reached in time.
        """
        ...

    async def keeps(self, names: Collection[str]) -> dict[str, float]:
        """Return for how many seconds the broker keeps each topic's records; infinity if it never drops them by age.

        Leaves out a topic that the broker does not describe: there is none, or we lack the right to
        ask.

        Raises:
            StartError: The broker refused the connection, or could not be reached in time.
        """
        ...

    async def create_topics(self, partitions: Mapping[str, int]) -> None:
        """Create topics, by name, with this many partitions and the broker's defaults; existing ones stay unchanged.

        Raises:
            StartError: The broker refused; the message names the topic.
        """
        ...

    async def leave(self, group: str, members: Collection[str]) -> None:
        """Leave a group for members whose processes have died, by their IDs; ignores unknown IDs.

        Raises:
            Unavailable: The broker refused, or did not answer in time.
        """
        ...
