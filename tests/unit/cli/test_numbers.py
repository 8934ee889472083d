"""Every command refuses numbers that neither the tables nor Kafka can hold."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from consumerkit.cli.dead_letters.options import moment_of, parted
from consumerkit.cli.main import app
from consumerkit.cli.numbers import whole
from consumerkit.cli.positions import _to
from consumerkit.cli.prune import seconds_in
from consumerkit.errors import ConfigurationError

TOO_HIGH = str(10**20)


def _numbers(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Return the words that give each command's numbers one that is too high."""
    for name, sub in getattr(command, "commands", {}).items():
        yield from _numbers(sub, (*path, name))
    for parameter in command.params if not hasattr(command, "commands") else ():
        if parameter.type_descriptor.annotation is int and "--seed" not in parameter.opts:
            option = [parameter.opts[0]] if parameter.opts[0].startswith("--") else []
            yield (*path, *option, TOO_HIGH)


NUMBERS = sorted(_numbers(typer.main.get_command(app)))


def test_the_commands_that_take_numbers_are_found() -> None:
    assert len(NUMBERS) > 12
    assert ("dead-letters", "show", TOO_HIGH) in NUMBERS
    assert ("dead-letters", "redrive", "--like", TOO_HIGH) in NUMBERS


@pytest.mark.parametrize("words", NUMBERS, ids=" ".join)
def test_a_number_that_is_too_high_is_refused(words: tuple[str, ...]) -> None:
    answer = CliRunner().invoke(app, list(words))
    assert answer.exit_code == 2
    told = " ".join(answer.output.split())
    assert any(words in told for words in (f"{TOO_HIGH} is beyond", f"{TOO_HIGH} is not in", "should be less than"))


@pytest.mark.parametrize("word", [f"1-{TOO_HIGH}", TOO_HIGH, "12-7", "0", "0-3", "9" * 5000])
def test_words_that_name_no_id_are_refused(word: str) -> None:
    with pytest.raises(ConfigurationError, match="names no ID; an ID is a number from 1"):
        parted([word])


@pytest.mark.parametrize("words", [["1-100001"], ["1-60000", "60001-100001"], [f"1-{2**63 - 1}"]])
def test_more_ids_than_a_command_takes_are_refused(words: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"at most 100000 fit one command. Choose by --handler"):
        parted(words)
    assert parted(["7-9", "12"])[0] == [7, 8, 9, 12]


@pytest.mark.parametrize("moment", ["0001-01-01T00:00+14:00", "9999-12-31T23:59-14:00", "99999999999999w", "3000000d"])
def test_a_moment_beyond_the_calendar_is_refused(moment: str) -> None:
    with pytest.raises(ConfigurationError, match="--since"):
        moment_of("--since", moment)


@pytest.mark.parametrize("span", [f"{TOO_HIGH}d", "9" * 400 + "s", "0d", "1e9d"])
def test_a_span_that_cannot_be_reckoned_with_is_refused(span: str) -> None:
    with pytest.raises(ConfigurationError, match="is no span up to a hundred years"):
        seconds_in(span)


def test_an_offset_that_kafka_has_not_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="give an offset, start or end"):
        _to(TOO_HIGH)
    assert _to("7") == whole("7") == 7
