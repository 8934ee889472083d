"""Decodes a handler's messages to events: codec, event type, tombstones, and the choice between several types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic_core import from_json

from consumerkit.errors import Unavailable, Undecodable
from consumerkit.handlers.codecs import Codec, Decode
from consumerkit.handlers.event_type import admits_none
from consumerkit.handlers.handler import Events
from consumerkit.handlers.message_id import Identity
from consumerkit.message import Message

SKIP: Final = object()
"""What a decoder returns for a message of an unknown type that the handler skips."""


def decoder_of(codec: Codec, event_type: Any) -> Decode:
    """Return the decoder for one event type.

    The decoder raises only `Undecodable` and `Unavailable` and `MemoryError`, never with the
    payload in the text.
    """
    read = codec.decoder(event_type)
    none_is_event = admits_none(event_type)

    def decode(message: Message) -> Any:
        if message.value is None:
            if none_is_event:
                return None
            raise Undecodable("the record has no value (a tombstone), and the event type does not admit None")
        try:
            return read(message)
        except (Undecodable, Unavailable, MemoryError):
            raise
        except OSError as error:
            # A codec may raise OSError instead of Unavailable: an outage must not dead-letter the
            # whole topic.
            raise Unavailable(f"{type(error).__name__} while decoding") from error
        except Exception as error:  # noqa: BLE001 - a user's validator may raise anything
            raise Undecodable(f"{type(error).__name__} while decoding") from None

    return decode


def decoder_of_several(codec: Codec, events: Events) -> Decode:
    """Return the decoder that picks the event type by the name in each message."""
    decoders = {name.encode(): decoder_of(codec, event_type) for name, event_type in events.types.items()}
    name_of = _name_reader(events.by)
    skips = events.unknown == "skip"

    def decode(message: Message) -> Any:
        name = name_of(message)
        known = None if name is None else decoders.get(name)
        if known is not None:
            return known(message)
        if skips:
            return SKIP
        raise Undecodable(
            f"no type name at {events.by}"
            if name is None
            else f"the type name at {events.by} is not among the declared"
        )

    return decode


def _name_reader(by: Identity) -> Callable[[Message], bytes | None]:
    def read(message: Message) -> bytes | None:
        event: Mapping[str, Any] | None = None
        for source in by.sources:
            if source.needs_event and event is None:
                event = _as_mapping(message)
            parts = source.read(message, event)
            if parts is not None:
                return parts[0]
        return None

    return read


def _as_mapping(message: Message) -> Mapping[str, Any]:
    """Return the value decoded from JSON; an empty mapping for a tombstone and for JSON that is not an object."""
    if message.value is None:
        return {}
    try:
        value = from_json(message.value)
    except (ValueError, RecursionError):
        raise Undecodable("the value is not JSON, so it has no field that names its type") from None
    return value if isinstance(value, Mapping) else {}
