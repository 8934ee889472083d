"""Where an error was raised."""

import json
import re

from consumerkit.engine.transaction.error_place import place_of


def _caught(work: object) -> BaseException:
    try:
        assert callable(work)
        work()
    except Exception as error:
        return error
    raise AssertionError


def test_it_is_the_innermost_line_of_the_users_code() -> None:
    place = place_of(_caught(lambda: json.loads("{")))
    assert place is not None
    assert re.fullmatch(r"tests/unit/engine/transaction/test_error_place\.py:\d+ in <lambda>", place)


def test_it_does_not_tell_where_the_program_is_installed() -> None:
    place = place_of(_caught(lambda: 1 / 0))
    assert place is not None
    assert not place.startswith("/")


def test_an_error_that_was_never_raised_has_none() -> None:
    assert place_of(ValueError()) is None
