"""The seam between the engine and a broker: fetch, commit, send. This docstring is the specification.

**Positions.** A message at offset 7 is *fetched* when `fetch` returned it, *finished* when its effect or its dead
letter is durable, and *committed* when the group's offset at the broker is 8 or more. The transport decides when to
fetch; the engine alone decides what is finished. A transport commits exactly what the engine gave it, never what it has
fetched, and never anything by itself: automatic commits are off.

**Assignments.** `Consumer.start` subscribes. From then on the broker's group protocol gives partitions and takes them
away, and the transport tells the `AssignmentListener`:

* `assigned` before the first message of a partition is returned by `fetch`, with the position it is read from, which
  the engine may commit. Each assignment of a partition gets an *epoch*, a number greater than all earlier ones of this
  consumer; every message carries the epoch under which it was fetched. Messages of an epoch that is over are never
  returned, and positions of an epoch that is over are never committed: they are dropped silently, since the partition's
  next owner starts from what was committed. It is called without partitions when the group has given this consumer
  none, since others have them all. A message carries its topic's ID, so a partition waits until the broker has
  told that: a topic may have been recreated since the last time.
* `revoked` while the partitions still belong to this consumer. The engine finishes or rolls back what it has in hand,
  within `Subscription.drain_timeout`, and returns the positions to commit; the transport commits them, awaiting the
  answer, before it lets the partitions go.
* `lost` when they belong to somebody else already: nothing is committed any more.
* `failed` when a partition cannot be read from its position (the position is outside the log, or a batch is
  broken): the partition stays assigned, is not read any further, and all others go on. A transport never jumps to the
  earliest or the latest offset by itself.

Listener calls of one consumer never overlap. A listener must not raise; if it does, the transport treats the
partitions as revoked without positions and reports through `health`.

**Where reading starts.** At the group's committed offset. Where there is none, at `Subscription.start_from`, as an
explicit position. An engine whose database knows better goes elsewhere by `seek`. A partition without a leader is
assigned once it has one, and keeps no other waiting.

**Questions.** `describe`, `survey` and `since` ask about many partitions at a time, on connections that fetch nothing:
a broker answers what stands behind a fetch only after it.

**Fetching.** `fetch` returns what is there, in offset order within a partition: at most `limit` messages, an empty
list after `timeout` seconds without any. It returns as soon as it has one message, and does not linger. It must be
called again and again, also while paused (then it returns nothing), since a consumer that is not polled leaves its
group. A caller never cancels a fetch: it waits it out, which takes `timeout` at most. Offsets may have gaps (control
records of transactions, compaction); only committed records of transactions are returned (`read_committed`). A
tombstone has the value None. Headers come in order, duplicates kept, a None value kept; a header name that is not UTF-8
comes with its bytes escaped, and never makes the record unreadable. After an error in the client no fetched record is
skipped.

**Passing over.** Where a log goes on without a message (the markers of transactions, aborted and compacted records),
`passed` tells how far a partition is read: all below that offset was returned by `fetch`, or holds no message. It goes
with the `fetch` that returned last, and is to be asked for before the next one. It leaves out a partition with
something that is fetched and not yet returned, and one that is held; a position bears its epoch, so `seek` and a new
assignment make it void.

**Pausing.** `pause` stops delivery for all partitions, including those assigned later, until `resume`; a rebalance
changes nothing about it. A fetch that was under way may still return messages.

`hold` does the same for single partitions, until `release`, until the assignment ends, or until the consumer stops.
The other partitions go on. A partition that is not assigned is passed over.

**Going elsewhere.** `seek` has an assigned partition read from another offset, under a new epoch, which it returns at
once: what was fetched under the old one is over, though a fetch that was under way may still return some of it. It
works on a partition that is held, and stays held; one that had failed is read again. A partition that is not assigned
any more is passed over.

**Sending.** `Producer.send` returns when every record is acknowledged by all in-sync replicas or has failed, one
answer per record, in order. It never raises for a record. The producer is idempotent. `place` does the same, and
tells where each record went. A record goes to the partition that it names, else to the one that its key chooses.

**Reading aside.** A `LogReader` reads one topic from the offsets it was given, or from the beginning, to where each
partition ended when it started. It belongs to no group, commits nothing, and takes nothing from anybody. Its `fetch` is
as a consumer's; `finished` tells that nothing is left, whatever offsets are missing at the end. A position that
retention has overtaken raises `PartitionUnusable`.

**Members.** `Consumer.member` tells by which ID the broker's group knows a consumer. A process that has died leaves no
group, and the broker waits for it until its session has run out. A caller that knows the IDs of its members has
`Transport.leave` tell the broker sooner. A member that lives after all loses its partitions, and joins again.

**Stopping.** `Consumer.stop` waits for the listener as long as it takes. It does not wait for other members: where the
group does, this one leaves by another connection.

**Errors.** Passing trouble (broker down, request timed out) is the transport's to survive: `fetch` returns nothing
until it is over. What does not pass is raised as `StartError` (start: authentication, authorisation, unknown topics) or
is `Unavailable` (commit: no answer from the broker; the engine commits again later, with newer positions).

**Health.** `health()` is cheap and callable from any thread: it tells how long ago the client's own loop last ran,
and the fatal error if there was one. The watchdog ends the process by it.

Implementations: `consumerkit.transports.confluent`, `consumerkit.transports.aiokafka`, `consumerkit.transports.memory`.
Each passes `tests/contracts`.
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
        offset: The message's.
        epoch: The assignment's.
        note: Text that is kept with the offset where it is committed.
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
        fetch_bytes: Bytes the client may hold ready beyond what was fetched.
    """

    group: str
    topics: tuple[str, ...]
    start_from: StartFrom = "earliest"
    drain_timeout: float = 20.0
    client_id: str = "consumerkit"
    fetch_bytes: int = 16 * 1024 * 1024


class Span(NamedTuple):
    """The offsets that are read of one partition: from `start` up to `end`, and without it."""

    start: int
    end: int


class Record(NamedTuple):
    """One record to send; where `partition` is None, the key chooses it."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None


class Acknowledged(NamedTuple):
    """Where a record went; the offset is -1 where the broker had it already, and did not tell."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class SendFailure:
    """Why a record was not acknowledged.

    Attributes:
        code: The broker's or the client's name for it, such as `UNKNOWN_TOPIC_OR_PART`; for people and logs.
        message: The same in words.
        permanent: Whether the same record can never be accepted as things stand (missing topic, not authorised,
            too large), so that trying again soon is pointless.
    """

    code: str
    message: str
    permanent: bool


def failure_in(answer: Acknowledged | SendFailure) -> SendFailure | None:
    """Return a record's answer as `Producer.send` gives it: None when acknowledged."""
    return answer if isinstance(answer, SendFailure) else None


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """What the broker knows of a topic."""

    name: str
    topic_id: str
    partitions: int


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    """What the broker knows of an assigned partition.

    Attributes:
        topic_id: Tells the topic from a later one of its name.
        start: The first offset that is in the log.
        end: The offset that the next record will get.
        committed: What the group has committed, or None.
        note: The text that was committed with it.
    """

    topic_id: str
    start: int
    end: int
    committed: int | None = None
    note: str = ""


class Surveyed(NamedTuple):
    """What the broker knows of one partition of a topic, whichever member has it.

    Attributes:
        span: The offsets that are in the log; None where the broker cannot tell now, for want of a leader.
        committed: What the group has committed, or None.
        note: The text that was committed with it.
    """

    span: Span | None
    committed: int | None = None
    note: str = ""


class Survey(NamedTuple):
    """What the broker knows of a topic and of all its partitions."""

    topic_id: str
    partitions: Mapping[int, Surveyed]


@dataclass(frozen=True, slots=True)
class Health:
    """How a consumer does.

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
        """Record that the partition is not read any further."""


class Consumer(Protocol):
    """One member of one consumer group."""

    async def start(self, listener: AssignmentListener) -> None:
        """Connect and subscribe.

        Raises:
            StartError: The broker refused, or could not be reached in time.
        """

    async def fetch(self, limit: int, timeout: float) -> list[Message]:
        """Return what is there, at most `limit` messages; wait `timeout` seconds for the first."""
        ...

    def passed(self) -> Mapping[TopicPartition, Position]:
        """Return where partitions are read on, as of the last `fetch`, at least those that end without a message."""
        ...

    async def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Commit the positions of epochs that still hold; return when the broker has them.

        Raises:
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
        """Have a partition read from `offset`; return the new epoch, under which its messages will come."""
        ...

    async def describe(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, PartitionInfo]:
        """Ask the broker about assigned partitions, now.

        Leaves out those that are not assigned any more, and those that have no leader now.

        Raises:
            Unavailable: The broker did not answer, or does not know a topic now; an earlier answer does not count.
        """
        ...

    async def survey(self, topic: str) -> Survey:
        """Ask the broker now about all partitions of a topic, whichever members have them.

        Raises:
            Unavailable: The broker did not answer, or does not know the topic now.
        """
        ...

    async def since(self, partition: TopicPartition, milliseconds: int) -> int:
        """Return a partition's first offset whose record bears this timestamp or a later one; without any, its end.

        Raises:
            Unavailable: The broker did not answer.
        """
        ...

    async def stop(self) -> None:
        """Have the listener finish with all partitions, commit what it returns, and leave the group."""

    def health(self) -> Health:
        """Tell how the consumer does; from any thread."""
        ...

    def member(self) -> str:
        """Return the ID by which the group knows this consumer, empty where it knows none; from any thread."""
        ...


class Producer(Protocol):
    """Sends records, acknowledgements awaited."""

    async def start(self) -> None:
        """Connect."""

    async def send(self, records: Sequence[Record]) -> list[SendFailure | None]:
        """Send all records; return one answer per record, in order: None when acknowledged."""
        ...

    async def stop(self) -> None:
        """Let what is under way finish, and disconnect."""


class PlacingProducer(Producer, Protocol):
    """A producer that can tell where records went."""

    async def place(self, records: Sequence[Record]) -> list[Acknowledged | SendFailure]:
        """Send all records as `send` does; return where each one went, or why it did not."""
        ...


class LogReader(Protocol):
    """Reads one topic, once, outside of any group; see the module's docstring."""

    async def start(self) -> Mapping[int, Span]:
        """Connect, and return what will be read of each partition.

        Raises:
            StartError: The topic is missing, or the broker refused or could not be reached in time.
        """
        ...

    async def fetch(self, limit: int, timeout: float) -> list[Message]:
        """Return what is there, at most `limit` messages; wait `timeout` seconds for the first.

        Raises:
            PartitionUnusable: A partition cannot be read from its position.
        """
        ...

    @property
    def positions(self) -> Mapping[int, int]:
        """How far each partition is read; its end once nothing is left of it."""
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
            offsets: Where to begin, by partition; the others begin with the oldest record there is.
        """
        ...

    async def topics(self, names: Collection[str]) -> dict[str, TopicInfo]:
        """Describe those of the topics that exist; never creates one.

        Raises:
            StartError: The broker refused, or could not be reached in time.
        """
        ...

    async def keeps(self, names: Collection[str]) -> dict[str, float]:
        """Return for how many seconds the broker keeps a topic's records; infinity where it never drops them by age.

        Leaves out a topic that the broker does not describe: it has none, or we lack the right to ask.

        Raises:
            StartError: The broker refused the connection, or could not be reached in time.
        """
        ...

    async def create_topics(self, partitions: Mapping[str, int]) -> None:
        """Create topics, by name, with this many partitions and the broker's defaults; existing ones are left alone.

        Raises:
            StartError: The broker refused; the message names the topic.
        """
        ...

    async def leave(self, group: str, members: Collection[str]) -> None:
        """Leave a group for members whose processes have died, by their IDs; those it does not know are passed over.

        Raises:
            Unavailable: The broker refused, or did not answer in time.
        """
        ...
