"""Codecs: they decode a record's value to an event, and encode a value to bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import TYPE_CHECKING, Any, Protocol

from consumerkit.errors import Undecodable
from consumerkit.message import Message

if TYPE_CHECKING:
    from pydantic_core import ValidationError

Decode = Callable[[Message], Any]


class Codec(Protocol):
    """Decodes and encodes values.

    `decoder` is called once per handler and event type, when the worker is built. The function that
    it returns is called for every message. That function raises `Undecodable` where the message is
    at fault, and `Unavailable` where something that decoding needs is down. An `OSError` counts as
    `Unavailable`, and any other error as `Undecodable`; only the class of such an error is shown. A
    tombstone (value None) never reaches that function: None is the event where the event type
    admits it, else the tombstone is undecodable.
    """

    def decoder(self, event_type: Any) -> Decode:
        """Return the function that decodes a message to `event_type`.

        Raises:
            ConfigurationError: The codec cannot decode to such a type.
        """
        ...

    def encode(self, value: object) -> bytes:
        """Return `value` as bytes, for `context.publish`.

        Raises:
            TypeError: The value cannot be encoded.
        """
        ...


class Json:
    """JSON through pydantic: decodes to any type that a `TypeAdapter` takes, and leaves `bytes` undecoded.

    Example:
        >>> decode = Json().decoder(dict[str, int])
        >>> decode(Message("t", 0, 0, value=b'{"amount": 5}'))
        {'amount': 5}
        >>> Json().encode({"amount": 5})
        b'{"amount":5}'
    """

    def decoder(self, event_type: Any) -> Decode:
        """Return the function that validates a message's JSON as `event_type`."""
        if event_type is bytes:
            return _raw
        from pydantic import TypeAdapter, ValidationError

        adapter = TypeAdapter(event_type)
        validate = adapter.validator.validate_json
        declared = _names_in(adapter.core_schema)

        def decode(message: Message) -> Any:
            value = message.value
            if value is None:
                raise Undecodable("the record has no value (a tombstone), and the event type does not admit None")
            try:
                return validate(value)
            except ValidationError as error:
                raise Undecodable(_described(error, declared)) from None

        return decode

    def encode(self, value: object) -> bytes:
        """Return `value` as JSON; bytes stay as they are."""
        if isinstance(value, bytes):
            return value
        from pydantic_core import PydanticSerializationError, to_json

        try:
            return to_json(value)
        except (PydanticSerializationError, ValueError, RecursionError) as error:
            raise TypeError(f"cannot encode {type(value).__qualname__} as JSON: {error}") from None

    def __repr__(self) -> str:
        return "Json()"


def _raw(message: Message) -> bytes:
    if message.value is None:
        raise Undecodable("the record has no value (a tombstone), and bytes do not admit None")
    return message.value


def _described(error: ValidationError, declared: Set[str]) -> str:
    """Describe what does not fit and where, without the input: values and mapping keys are part of the payload."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    places = []
    for item in found[:3]:
        place = ".".join(str(part) if part in declared else "*" for part in item["loc"])
        places.append(f"{place or 'value'}: {item['type']}")
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"{'; '.join(places)}{more}"


def _names_in(schema: object) -> frozenset[str]:
    """Return every name that a type's schema mentions: these come from the program, not from a payload."""
    if isinstance(schema, str):
        return frozenset({schema})
    if isinstance(schema, Mapping):
        return frozenset().union(*map(_names_in, (*schema, *schema.values())))
    if isinstance(schema, list | tuple):
        return frozenset().union(*map(_names_in, schema))
    return frozenset()
