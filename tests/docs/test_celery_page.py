"""What the page for people who know Celery says is refused is refused."""

import re

import pytest
from pydantic import BaseModel

from consumerkit import Context, Handler, header
from consumerkit.errors import ConfigurationError
from consumerkit.handlers.declaration import declare_all
from tests.docs.markdown import ROOT

_PAGE = (ROOT / "docs" / "coming-from-celery.md").read_text()
_OPTIONS = re.search(r"The worker refuses these options of a Celery task.*?instead: (.*?)\. Those", _PAGE, re.DOTALL)
assert _OPTIONS is not None
OPTIONS = re.findall(r"`(\w+)`", _OPTIONS[1])


class Event(BaseModel):
    n: int


class Plain(Handler[Event]):
    name = "plain"
    topic = "t"
    message_id = header("message-id")

    async def handle(self, event: Event, context: Context[Event]) -> None:
        pass


def test_options_are_named() -> None:
    assert len(OPTIONS) > 20


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_of_celery_is_refused(option: str) -> None:
    handler = type("WithOption", (Plain,), {option: 3})
    with pytest.raises(ConfigurationError, match=f"{option} is no declaration"):
        declare_all([handler()])
    declare_all([Plain()])
