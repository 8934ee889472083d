"""The destination of a message that will not succeed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from consumerkit.errors import ConfigurationError
from consumerkit.message import TOPIC_RULE, is_topic_name


@dataclass(frozen=True, slots=True, repr=False)
class DeadLetter:
    """The topic to which a handler's dead letters are published, besides their row in `dead_letters`.

    Args:
        topic: The dead-letter topic. It must exist, with as many partitions as its source
            (`consumerkit topics create` makes it), and it must not be among the topics the handler consumes.
        hold_key: With `Ordering.KEY`, keep later messages of a dead message's key waiting behind
            it, until it is redriven and succeeds, or a person resolves or discards it. A `conflict`
            holds no key: its ID was processed.
        resend: What happens to another message with the ID of a dead one: "skip" counts it, "run"
            runs it, in the dead message's place if that holds its key.

    Raises:
        ConfigurationError: The topic's name is invalid.

    Example:
        >>> DeadLetter("payments.captured.dlq")
        DeadLetter(topic='payments.captured.dlq')
    """

    topic: str
    hold_key: bool = False
    resend: Literal["skip", "run"] = "skip"

    def __post_init__(self) -> None:
        if not is_topic_name(self.topic):
            raise ConfigurationError(f"DeadLetter({self.topic!r}): this is not the name of a topic; {TOPIC_RULE}")

    def __repr__(self) -> str:
        said = [f"{name}={getattr(self, name)!r}" for name, usual in _USUAL.items() if getattr(self, name) != usual]
        return f"DeadLetter({', '.join([f'topic={self.topic!r}', *said])})"


_USUAL = {"hold_key": False, "resend": "skip"}
