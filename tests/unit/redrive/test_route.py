from __future__ import annotations

from dataclasses import replace

import pytest

from consumerkit.dead_letters.formats import LetterRecord, Origin, read
from consumerkit.message import Message
from consumerkit.redrive.importing.route import Unplaced, placed
from consumerkit.transports.base import TopicInfo
from consumerkit.transports.memory import MemoryBroker
from tests.unit.dead_letters.records import record, spring

TOPICS = {"payments": TopicInfo("payments", "payments-id", 4), "refunds": TopicInfo("refunds", "refunds-id", 8)}
RECORD = record(*spring())
LETTER = read(RECORD)


OURS = replace(LETTER, topic_id="payments-id", origin=Origin("payments", 3, 7))


def at(
    letter: LetterRecord, as_topic: str | None = None, of: Message = RECORD, below: int = 0
) -> tuple[str, str, int, int, bool]:
    found = placed(letter, of, TOPICS, as_topic, {"payments": {3: below}})
    message = found.message
    return message.topic, message.topic_id, message.partition, message.offset, found.at_home


def test_a_letter_that_tells_the_topics_id_goes_back_to_where_it_stood_if_that_is_settled() -> None:
    assert at(OURS, below=8) == ("payments", "payments-id", 3, 7, True)
    assert at(OURS, "refunds", below=8) == at(OURS, below=8)


def test_what_is_not_settled_or_tells_no_topic_id_has_an_origin_of_its_own_in_its_partition() -> None:
    for letter, below in ((OURS, 7), (OURS, 0), (replace(OURS, topic_id=""), 8)):
        assert at(letter, below=below) == ("payments", "origin:payments[3]", 3, 7, False)


def test_the_id_of_another_topic_of_the_handlers_is_not_believed() -> None:
    assert at(replace(OURS, topic_id="refunds-id"), below=8)[1] == "origin:payments[3]"


def test_the_topic_id_that_a_letter_tells_is_believed() -> None:
    assert at(replace(LETTER, topic_id="an-older-id"))[1] == "an-older-id"


def test_the_message_is_the_original_one() -> None:
    message = placed(LETTER, RECORD, TOPICS, None).message
    assert (message.key, message.value, message.headers) == (LETTER.key, LETTER.value, LETTER.headers)
    assert message.timestamp == LETTER.timestamp


def test_a_letter_from_elsewhere_is_not_placed_by_guess() -> None:
    with pytest.raises(Unplaced, match=r"it stood in 'orders'.*payments, refunds.*--as-topic"):
        at(replace(LETTER, origin=Origin("orders", 0, 7)))
    with pytest.raises(Unplaced, match=r"does not name its origin.*--as-topic"):
        at(replace(LETTER, origin=None))


@pytest.mark.parametrize("key", [b"alice", b"bob", b"", b"\xff" * 40])
def test_a_letter_from_elsewhere_goes_where_a_producer_would_send_its_key(key: bytes) -> None:
    letter = replace(LETTER, key=key, origin=Origin("orders", 9, 7))
    partition = MemoryBroker(topics={"refunds": 8}).append("refunds", b"", key=key).partition
    assert at(letter, "refunds") == ("refunds", "origin:orders[9]", partition, 7, False)


def test_letters_from_elsewhere_without_a_key_are_spread_in_the_same_way_each_time() -> None:
    letters = [replace(LETTER, key=None, origin=Origin("orders", 0, offset)) for offset in range(8)]
    assert [at(letter, "payments")[2] for letter in letters] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_the_same_offset_of_two_partitions_elsewhere_is_two_origins() -> None:
    one, other = (at(replace(LETTER, origin=Origin("orders", number, 7)), "payments") for number in (0, 1))
    assert one[1:] != other[1:]


def test_a_letter_without_an_origin_is_known_by_its_place_in_the_dead_letter_topic() -> None:
    assert at(replace(LETTER, origin=None), "payments")[1::2] == ("dlq:dead-id[2]", 40)


def test_a_partition_that_the_topic_has_no_more_is_replaced_by_the_keys() -> None:
    topic, topic_id, partition, offset, at_home = at(replace(LETTER, origin=Origin("payments", 11, 7)))
    assert (topic, topic_id, offset, at_home) == ("payments", "origin:payments[11]", 7, False)
    assert partition < 4
