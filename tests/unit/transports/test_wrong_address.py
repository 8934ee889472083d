"""A wrong address is reported at the first failed try, long before the client gives up."""

import logging
import socketserver
import threading

import pytest

from consumerkit.errors import StartError
from consumerkit.transports.confluent import admin


async def test_a_wrong_address_is_told_before_it_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admin, "_TRY", 0.1)
    asked = admin.TopicAdmin({"bootstrap.servers": "127.0.0.1:1"}, timeout=0.5)
    with caplog.at_level(logging.WARNING), pytest.raises(StartError, match="check that the broker runs"):
        await asked.topics({"t"})
    told = [record.getMessage() for record in caplog.records if record.name == admin.__name__]
    assert len(told) == 1
    assert told[0].startswith("Kafka at 127.0.0.1:1: no answer yet: ")
    assert told[0].endswith("s more")


def test_each_try_is_short_enough_to_tell_within_five_seconds() -> None:
    assert admin._TRY <= 4.0


class Web(socketserver.BaseRequestHandler):
    """Answers whatever comes as a web server does."""

    def handle(self) -> None:
        self.request.recv(100)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def test_what_is_no_kafka_is_told_to_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client reads the answer as a size, and advises a larger limit for answers."""
    monkeypatch.setattr(admin, "_TRY", 0.5)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asked = admin.TopicAdmin({"bootstrap.servers": f"127.0.0.1:{server.server_address[1]}"}, timeout=1.0)
        with pytest.raises(StartError, match="is not a Kafka listener, or is one that needs security=") as error:
            await asked.topics({"t"})
        server.shutdown()
    assert "receive.message.max.bytes" not in str(error.value)
