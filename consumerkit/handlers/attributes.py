"""Reads a handler's attributes one by one; each error is one line with the place, the value and the way out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from reprlib import Repr
from typing import Any, Literal, NoReturn, TypeVar

from consumerkit.errors import ConfigurationError
from consumerkit.handlers.codecs import Codec
from consumerkit.handlers.event_type import field_names
from consumerkit.handlers.field_types import field_types
from consumerkit.handlers.foreign_names import MEANT, SET_ELSEWHERE
from consumerkit.handlers.handler import AnyHandler, BatchHandler, Events, Handler, Ordering
from consumerkit.handlers.message_id import Fingerprint, Identity
from consumerkit.handlers.value_types import fingerprint_problem, id_problem
from consumerkit.message import TOPIC_RULE, is_topic_name
from consumerkit.policies.brake import Brake
from consumerkit.policies.dead_letter import DeadLetter
from consumerkit.policies.retry import Retry

T = TypeVar("T")

NAME_CHARACTERS = 200
GROUP_CHARACTERS = 249

_DECLARED = Handler.__mro__[1]
_VALUES = frozenset(_DECLARED.__annotations__) - {"OPTIONAL_METHODS"}
_METHODS = frozenset({"handle", "handle_batch", *Handler.OPTIONAL_METHODS})
_OURS = (*Handler.__mro__, *BatchHandler.__mro__)
_USUAL = frozenset({"publisher", "publishers", "published"})
"""Common names of a handler's own attributes: they resemble a declaration and are no slip."""
_CLOSE = 0.765
"""How similar to a declaration an attribute must be to count as a slip: `group_id` is, `message_key` is not."""


class Attributes:
    """The attributes of one handler, each checked as it is read; every method raises `ConfigurationError`."""

    def __init__(self, handler: AnyHandler) -> None:
        self.handler = handler
        self.label = type(handler).__name__
        name = getattr(handler, "name", None)
        if isinstance(name, str):
            self.label += f" (name {in_short(name)})"

    def refuse(self, problem: str) -> NoReturn:
        """Raise the error that says what is wrong with this handler."""
        raise ConfigurationError(f"{self.label}: {problem}")

    def refuse_value(self, attribute: str, problem: str) -> NoReturn:
        """Raise the error that shows an attribute's value and says what is wrong with it."""
        self.refuse(f"{attribute}={in_short(getattr(self.handler, attribute))} {problem}")

    def name(self) -> str:
        """Return the name, which is fit for a ledger's key, a metric's label and a command line."""
        if not hasattr(self.handler, "name"):
            self.refuse('name is missing; set name = "...", and never reuse it: the ledger knows the handler by it')
        name = self._text("name", NAME_CHARACTERS)
        if not re.fullmatch(r"[A-Za-z0-9._:-]+", name):
            self.refuse_value("name", "has odd characters; use letters, digits and . _ : -")
        return name

    def group(self, name: str) -> str:
        """Return the consumer group."""
        if not hasattr(self.handler, "group"):
            return name
        group = self._text("group", GROUP_CHARACTERS)
        if not group.isprintable() or group != group.strip():
            self.refuse_value("group", "has characters that cannot be seen; use letters, digits and . _ : -")
        return group

    def topics(self) -> tuple[str, ...]:
        """Return the topics that `topic` or `topics` names."""
        has_one, has_several = hasattr(self.handler, "topic"), hasattr(self.handler, "topics")
        if has_one and has_several:
            self.refuse("both topic and topics are set; keep one of them")
        if has_one:
            if not is_topic_name(self.handler.topic):
                self.refuse_value("topic", f"is not a topic name; {TOPIC_RULE}")
            return (self.handler.topic,)
        if not has_several:
            self.refuse('topic is missing; set topic = "..." or topics = ("...", "...")')
        names = self._topic_names("topics", self.handler.topics, 'set topics = ("...", "...") or topic = "..."')
        if not names:
            self.refuse_value("topics", "names no topic; give at least one")
        return names

    def publishes(self) -> tuple[str, ...] | None:
        """Return the topics that `context.publish` accepts; None where they are not declared."""
        if self.handler.publishes is None:
            return None
        return self._topic_names("publishes", self.handler.publishes, 'set publishes = ("...",) or None')

    def identity(self) -> Identity:
        """Return the place where the message ID is read."""
        if not hasattr(self.handler, "message_id"):
            self.refuse('message_id is missing; set header("..."), event_field("...") or coordinates()')
        way_out = "is not an Identity; set header(...), event_field(...) or coordinates()"
        found = self.instance("message_id", Identity, way_out)
        if found.is_only_a_time:
            self.refuse_value("message_id", "is a time, and many messages may share one; see coordinates()")
        return found

    def event_time(self) -> Identity | None:
        """Return the place where an event's time is read; None where there is none."""
        if self.handler.event_time is None:
            return None
        way_out = "is not a place in a message; set header(...), event_field(...), record_timestamp() or None"
        return self.instance("event_time", Identity, way_out)

    def dead_letter(self, topics: tuple[str, ...], ordering: Ordering) -> DeadLetter | None:
        """Return the dead-letter topic, which is not among `topics`; None where there is none."""
        if self.handler.dead_letter is None:
            return None
        way_out = 'is not a DeadLetter; set DeadLetter("...") or None'
        dead_letter = self.instance("dead_letter", DeadLetter, way_out)
        if dead_letter.topic in topics:
            self.refuse_value(
                "dead_letter", "is among the topics the handler consumes; give dead letters another topic"
            )
        if dead_letter.resend not in ("skip", "run"):
            self.refuse(f'dead_letter: resend={in_short(dead_letter.resend)} is neither "skip" nor "run"')
        if not isinstance(dead_letter.hold_key, bool):
            self.refuse(f"dead_letter: hold_key={in_short(dead_letter.hold_key)} is neither True nor False")
        if dead_letter.hold_key and ordering is not Ordering.KEY:
            self.refuse(
                f"dead_letter: hold_key=True holds keys, and ordering={ordering} has none; "
                "set ordering = Ordering.KEY, or leave hold_key out"
            )
        return dead_letter

    def codec(self) -> Codec:
        """Return the codec."""
        codec = self.handler.codec
        if isinstance(codec, type):
            self.refuse_value("codec", f"is a class; set codec = {codec.__name__}()")
        if not all(callable(getattr(codec, method, None)) for method in ("decoder", "encode")):
            self.refuse_value("codec", "is not a Codec; give an object with decoder() and encode(), such as Json()")
        return codec

    def events(self) -> Events | None:
        """Return the event types where the handler declares several, else None."""
        if self.handler.events is None:
            return None
        events = self.instance("events", Events, "is not an Events; set Events(by=header(...), types={...})")
        by = getattr(events, "by", None)
        if not isinstance(by, Identity) or not all(source.names_a_type for source in by.sources):
            self.refuse(f"events: by={in_short(by)} is not one header or field; set by=header(...)")
        types = getattr(events, "types", None)
        if not isinstance(types, Mapping) or not types:
            self.refuse(f'events: types={in_short(types)} is not a mapping; set types={{"order.paid": OrderPaid}}')
        for name in types:
            if not isinstance(name, str) or not name or not _encodes(name):
                self.refuse(f"events: types has the name {in_short(name)}; give each type a name that is text")
        if events.unknown not in ("skip", "dead-letter"):
            self.refuse(f'events: unknown={in_short(events.unknown)} is neither "skip" nor "dead-letter"')
        return events

    def ordering(self) -> Ordering:
        """Return the ordering."""
        return self.instance(
            "ordering", Ordering, "is not an Ordering; set Ordering.PARTITION, Ordering.KEY or Ordering.NONE"
        )

    def brake(self) -> Brake:
        """Return the brake."""
        return self.instance("brake", Brake, "is not a Brake; set Brake(allowance=...)")

    def retry(self) -> Retry:
        """Return the retry policy."""
        way_out = "is not a Retry; set Retry(attempts=...), Retry(deadline=...) or both"
        retry = self.instance("retry", Retry, way_out)
        if retry.on_result is not None and isinstance(self.handler, BatchHandler):
            self.refuse_value("retry", "has on_result, and handle_batch's result is ignored; raise an error instead")
        return retry

    def fingerprint(self) -> Fingerprint:
        """Return the fingerprint."""
        return self.instance("fingerprint", Fingerprint, 'is not a Fingerprint; set event_fields("...", "...")')

    def scope(self) -> Literal["consumer", "topic"]:
        """Return the scope of message IDs."""
        self._check_choice("scope", "consumer", "topic")
        return self.handler.scope

    def start_from(self) -> Literal["earliest", "latest"]:
        """Return where a new consumer group starts."""
        self._check_choice("start_from", "earliest", "latest")
        return self.handler.start_from

    def count(self, attribute: str) -> int:
        """Return a whole number that is 1 or more."""
        value = getattr(self.handler, attribute)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.refuse_value(attribute, "is not a whole number >= 1")
        return value

    def shares_transaction(self) -> bool | None:
        """Return whether messages may share a transaction; None where the worker finds out."""
        value = self.handler.shares_transaction
        if value is not None and not isinstance(value, bool):
            self.refuse_value("shares_transaction", "is none of True, False and None")
        if value is not None and isinstance(self.handler, BatchHandler):
            self.refuse_value(
                "shares_transaction", "says nothing of a batch handler, whose events share one; set batch_size = 1"
            )
        return value

    def seconds(self, attribute: str) -> float:
        """Return a number of seconds above 0."""
        value = getattr(self.handler, attribute)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            self.refuse_value(attribute, "is not a number of seconds > 0")
        return float(value)

    def instance(self, attribute: str, kind: type[T], way_out: str) -> T:
        """Return an attribute that must be of a certain class."""
        value = getattr(self.handler, attribute)
        if not isinstance(value, kind):
            self.refuse_value(attribute, way_out)
        return value

    def refuse_near_misses(self) -> None:
        """Refuse an attribute that looks like a misspelt declaration; leave the user's own attributes alone."""
        for names, taken in _namespaces(self.handler):
            for attribute, value in names.items():
                known = _METHODS if callable(value) and not isinstance(value, type) else _VALUES
                if attribute.startswith("_") or attribute in _VALUES | _METHODS | _USUAL or attribute in SET_ELSEWHERE:
                    continue
                meant = {MEANT[attribute]} - taken if attribute in MEANT else set()
                for close in meant or get_close_matches(attribute, sorted(known - taken), n=1, cutoff=_CLOSE):
                    self.refuse(f"{attribute} is no declaration; did you mean {close}? If not, rename it")

    def refuse_what_is_set_elsewhere(self) -> None:
        """Refuse a class attribute of another framework that consumerkit sets elsewhere than in a handler."""
        for cls in type(self.handler).__mro__:
            for attribute in () if cls in _OURS else vars(cls):
                if attribute in SET_ELSEWHERE:
                    self.refuse(f"{attribute} is no declaration: {SET_ELSEWHERE[attribute]}. If it is yours, rename it")

    def refuse_unknown_fields(self, event_types: Sequence[Any]) -> None:
        """Refuse a message ID or a fingerprint that reads a field that no event type has.

        No message would have such an ID, and all messages would have the same fingerprint.
        """
        known = [field_names(event_type) for event_type in event_types]
        names = frozenset().union(*(some for some in known if some is not None))
        if None in known:
            return
        identity: Identity = self.handler.message_id
        read = [("message_id", path) for source in identity.sources for path in source.fields]
        read += [("fingerprint", path) for path in self.fingerprint().names]
        for attribute, path in read:
            field = path.partition(".")[0]
            if field not in names:
                close = get_close_matches(field, sorted(names), n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(map(repr, sorted(names)))}"
                types = " or ".join(kind.__name__ if isinstance(kind, type) else in_short(kind) for kind in event_types)
                self.refuse_value(attribute, f"reads {field!r}, and no event ({types}) has it; {hint}")

    def refuse_unstable_fields(self, event_types: Sequence[Any]) -> None:
        """Refuse a message ID or a fingerprint that reads a field whose bytes do not represent its value."""
        identities = {"message_id": self.identity(), "event_time": self.event_time()}
        sources = [(name, source) for name, found in identities.items() if found for source in found.sources]
        read = [(name, path, id_problem) for name, source in sources for path in source.fields]
        read += [("fingerprint", path, fingerprint_problem) for path in self.fingerprint().names]
        for attribute, path, problem_of in read:
            problems = [problem_of(kind) for event_type in event_types for kind in field_types(event_type, path)]
            for problem in filter(None, problems):
                self.refuse_value(attribute, f"reads {path!r}, which {problem}; name fields of plain types")

    def _topic_names(self, attribute: str, topics: Any, way_out: str) -> tuple[str, ...]:
        if isinstance(topics, str | bytes) or not hasattr(topics, "__iter__"):
            self.refuse_value(attribute, f"is not a sequence of names; {way_out}")
        names = tuple(topics)
        for name in names:
            if not is_topic_name(name):
                self.refuse_value(attribute, f"has {in_short(name)}, which is not a topic name; {TOPIC_RULE}")
        if len(set(names)) < len(names):
            self.refuse_value(attribute, "names a topic twice; name each once")
        return names

    def _text(self, attribute: str, most: int) -> str:
        value = getattr(self.handler, attribute)
        if not isinstance(value, str):
            self.refuse_value(attribute, "is not text")
        if not value:
            self.refuse_value(attribute, "is empty; give it at least one character")
        if len(value) > most:
            self.refuse_value(attribute, f"has {len(value)} characters; give it at most {most}")
        return value

    def _check_choice(self, attribute: str, *choices: str) -> None:
        if getattr(self.handler, attribute) not in choices:
            self.refuse_value(attribute, f"is not one of {', '.join(map(repr, choices))}")


def in_short(value: object) -> str:
    """Return a value's representation on one line, cut where it is long."""
    short = Repr()
    short.maxstring = short.maxother = 80
    return " ".join(short.repr(value).split())


def _encodes(name: str) -> bool:
    return name == name.encode(errors="replace").decode()


def _namespaces(handler: AnyHandler) -> list[tuple[Mapping[str, Any], frozenset[str]]]:
    """Return each of the user's namespaces with the names that it sets, which its other names cannot stand for."""
    classes = [cls for cls in type(handler).__mro__ if cls not in _OURS]
    found = [(dict(vars(cls)), frozenset(vars(cls))) for cls in classes]
    own = getattr(handler, "__dict__", {})
    return [*found, (own, frozenset(own) | frozenset().union(*(taken for _, taken in found)))]
