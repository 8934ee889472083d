"""The relay holds back a topic, a key or one message; and for how long."""

from collections.abc import Iterable

import pytest

from consumerkit.relay.holds import LONGEST_WAIT, Holds
from consumerkit.relay.refusals import Cause
from consumerkit.storage.outbox import OutboxMessage, Pending, Queue, RowIdentity
from consumerkit.storage.outbox_remaining import Remaining


def pending(sequence: int = 1, topic: str = "t", key: bytes | None = b"k") -> Pending:
    queue = Queue(topic.encode(), b"" if key is None else b"k" + key)
    return Pending(sequence, OutboxMessage(topic, key, b"v", ()), RowIdentity(sequence, None, "[]"), queue)


def test_nothing_is_held_back_at_first() -> None:
    holds = Holds()
    assert not holds.held(pending(), 0.0)
    assert holds.topics(0.0) == []
    assert holds.queues(0.0) == set()
    assert holds.release(pending()) is None
    assert holds.release_topic("t") is None
    assert not holds.ill("t")


@pytest.mark.parametrize("cause", [Cause.MISSING, Cause.FORBIDDEN, Cause.UNREACHABLE])
def test_a_topics_failure_holds_back_the_topic_alone(cause: Cause) -> None:
    holds = Holds()
    hold, news = holds.hold(pending(), cause, 100.0)
    assert news
    assert 1.0 <= hold.wait <= 1.25
    assert hold.sequence is None
    assert holds.held(pending(2, key=b"other"), 100.5)
    assert holds.held(pending(3, key=None), 100.5)
    assert not holds.held(pending(4, topic="u"), 100.5)
    assert holds.topics(100.5) == ["t"]
    assert holds.queues(100.5) == set()


@pytest.mark.parametrize("causes", [[Cause.UNREACHABLE] * 20, [Cause.UNREACHABLE, Cause.MISSING] * 10])
def test_what_fails_while_a_place_waits_is_the_same_failure(causes: list[Cause]) -> None:
    """A shipment's messages fail together."""
    holds = Holds()
    found = [holds.hold(pending(number, key=b"%d" % number), cause, 100.0)[0] for number, cause in enumerate(causes)]
    assert len(set(map(id, found))) == 1
    assert found[0].failures == 1
    assert found[0].until <= 101.25
    assert holds.hold(pending(), Cause.UNREACHABLE, 102.0)[0].failures == 2


@pytest.mark.parametrize("cause", [Cause.TOO_LARGE, Cause.UNFIT])
def test_a_records_failure_holds_back_its_key_alone(cause: Cause) -> None:
    holds = Holds()
    hold, _ = holds.hold(pending(), cause, 100.0)
    assert hold.sequence == 1
    assert holds.held(pending(2), 100.5)
    assert not holds.held(pending(3, key=b"other"), 100.5)
    assert not holds.held(pending(4, key=None), 100.5)
    assert not holds.held(pending(5, topic="u"), 100.5)
    assert holds.topics(100.5) == []
    assert holds.queues(100.5) == {Queue(b"t", b"kk")}


def test_a_record_without_a_key_holds_back_itself_alone() -> None:
    holds = Holds()
    holds.hold(pending(1, key=None), Cause.TOO_LARGE, 100.0)
    assert holds.held(pending(1, key=None), 100.5)
    assert not holds.held(pending(2, key=None), 100.5)
    assert not holds.held(pending(1, key=b"1"), 100.5)
    assert holds.queues(100.5) == {Queue(b"t", b"")}


def test_waits_double_up_to_a_minute_and_jitter_only_adds() -> None:
    waits: list[list[float]] = []
    for _ in range(20):
        holds = Holds()
        now = 0.0
        waits.append([])
        for _ in range(9):
            hold, _ = holds.hold(pending(), Cause.UNREACHABLE, now)
            waits[-1].append(hold.wait)
            now += hold.wait
    for at, least in enumerate([1, 2, 4, 8, 16, 32, 48, 48, 48]):
        found = [one[at] for one in waits]
        assert least <= min(found) < max(found) <= min(1.25 * least, LONGEST_WAIT)


def test_what_has_waited_is_tried_again_one_ahead_of_the_others() -> None:
    holds = Holds()
    hold, _ = holds.hold(pending(), Cause.UNREACHABLE, 100.0)
    assert holds.held(pending(), hold.until - 0.01)
    assert not holds.held(pending(), hold.until)
    assert holds.topics(hold.until) == []
    assert holds.ill("t")


def test_it_is_news_once_and_again_when_the_cause_changes() -> None:
    holds = Holds()
    causes = [Cause.MISSING, Cause.MISSING, Cause.FORBIDDEN, Cause.FORBIDDEN, Cause.MISSING]
    assert [holds.hold(pending(), cause, 0.0)[1] for cause in causes] == [True, False, True, False, True]


def test_a_record_that_was_taken_ends_the_wait_of_its_key_and_a_topic_is_released_by_itself() -> None:
    holds = Holds()
    holds.hold(pending(), Cause.UNREACHABLE, 100.0)
    holds.hold(pending(), Cause.TOO_LARGE, 100.0)
    holds.hold(pending(2, key=b"other"), Cause.TOO_LARGE, 100.0)
    released = holds.release(pending())
    assert released is not None
    assert released.sequence == 1
    assert holds.held(pending(), 100.5)
    assert holds.release_topic("t") is not None
    assert not holds.held(pending(), 100.5)
    assert holds.held(pending(2, key=b"other"), 100.5)
    assert holds.hold(pending(), Cause.UNREACHABLE, 100.0)[0].failures == 1


def test_the_next_one_of_a_key_tells_that_the_one_at_fault_is_gone() -> None:
    holds = Holds()
    holds.hold(pending(1), Cause.TOO_LARGE, 100.0)
    assert holds.outlived(pending(1)) is None
    gone = holds.outlived(pending(2))
    assert gone is not None
    assert gone.sequence == 1
    assert holds.outlived(pending(2)) is None


def rest(*sequences: int, topics: Iterable[bytes] = ()) -> Remaining:
    return Remaining(frozenset(sequences), frozenset(topics))


@pytest.mark.parametrize("sends", [True, False])
@pytest.mark.parametrize("cause", [Cause.MISSING, Cause.TOO_LARGE])
def test_a_hold_ends_when_its_messages_are_gone(cause: Cause, sends: bool) -> None:
    holds = Holds()
    hold, _ = holds.hold(pending(7), cause, 100.0)
    assert holds.refused() == ([7], [] if cause.of_record else [b"t"])
    assert holds.without_reason(rest(7, topics=[b"t"]), 100.5, sends=sends) == []
    assert holds.held(pending(7), 100.5)
    assert holds.without_reason(rest(), 100.5, sends=sends) == [("t", hold)]
    assert not holds.ill("t")
    assert holds.refused() == ([], [])


def test_the_last_of_the_refused_messages_counts() -> None:
    """The oldest ones go first when they have waited for too long; that says nothing about the topic."""
    holds = Holds()
    for number in (2, 3, 1):
        holds.hold(pending(number), Cause.MISSING, 100.0)
    assert holds.refused() == ([3], [b"t"])


def test_who_sends_tries_a_topic_at_once_when_its_refused_messages_are_gone_and_others_wait() -> None:
    holds = Holds()
    holds.hold(pending(7), Cause.MISSING, 100.0)
    assert holds.without_reason(rest(topics=[b"t"]), 100.5, sends=True) == []
    assert not holds.held(pending(8), 100.5)
    assert holds.ill("t")


def test_who_does_not_send_leaves_a_topic_to_who_does_when_its_refused_messages_are_gone() -> None:
    holds = Holds()
    hold, _ = holds.hold(pending(7), Cause.MISSING, 100.0)
    assert holds.without_reason(rest(topics=[b"t"]), 100.5, sends=False) == [("t", hold)]
