"""The rules of Kafka's authorizer for a worker: its topics to read and write, and its consumer groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from shlex import quote
from typing import NamedTuple

from consumerkit.handlers.declaration import Declaration


class Rule(NamedTuple):
    """One access rule.

    Attributes:
        kind: "topic" or "group".
        name: The topic's or the group's name.
        operations: The allowed operations, in Kafka's words.
    """

    kind: str
    name: str
    operations: tuple[str, ...]


def rules(declarations: Sequence[Declaration], written: Iterable[str] = ()) -> list[Rule]:
    """Return the rules that a worker with these handlers needs.

    Args:
        declarations: The worker's handlers.
        written: Topics that the handlers publish to and do not declare.
    """
    read = {topic for declared in declarations for topic in declared.topics}
    letters = {declared.dead_letter.topic for declared in declarations if declared.dead_letter is not None}
    wanted: dict[str, list[str]] = {}
    for topic in sorted(read):
        # DescribeConfigs reads the topic's retention, which the worker compares with its own
        # `retention`.
        wanted.setdefault(topic, []).extend(["Read", "DescribeConfigs"])
    published = {topic for declared in declarations for topic in declared.publishes or ()}
    for topic in sorted({topic for topic in letters if topic} | published | set(written)):
        wanted.setdefault(topic, []).append("Write")
    groups = sorted({declared.group for declared in declarations})
    return [
        *(Rule("topic", topic, tuple(operations)) for topic, operations in sorted(wanted.items())),
        *(Rule("group", group, ("Read",)) for group in groups),
    ]


def commands(rules: Sequence[Rule], principal: str) -> list[str]:
    """Return the commands of Kafka's own tool that add these rules for a principal, such as `User:shop`."""
    return [
        " ".join(
            [
                'kafka-acls.sh --bootstrap-server "$KAFKA" --command-config admin.properties --add',
                f"--allow-principal {quote(principal)}",
                *(f"--operation {operation}" for operation in rule.operations),
                f"--{rule.kind} {quote(rule.name)}",
            ]
        )
        for rule in rules
    ]
