"""`consumerkit db` and `consumerkit dead-letters` on real databases."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text, update
from sqlalchemy.orm import Session

import consumerkit
from consumerkit.message import Message
from consumerkit.outcome import Outcome, Reason
from consumerkit.storage import consumers, outbox
from consumerkit.storage.dead_letters import letters as dead_letters
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.dialects import Claim, dialect_for
from consumerkit.storage.ledger import Ledger
from consumerkit.storage.outbox import OutboxMessage
from consumerkit.storage.parking import occupancy
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.parking.parked import Kind, ParkedMessage
from consumerkit.storage.tables import DEFAULT_TABLES, Tables
from tests.integration.command import CommandLine
from tests.integration.fresh_url import fresh_url
from tests.services import PostgresServer

VERSIONS = Path(consumerkit.__file__).parent / "storage/migrations/versions"
UPGRADED = f"upgraded to revision {max(one.name[:4] for one in VERSIONS.glob('0*.py'))}\n"

OLD = "2001-01-01T00:00:00+00:00"
DRIVERS = ["psycopg", "asyncpg", "sqlite"]


@pytest.fixture(params=DRIVERS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return fresh_url(request, tmp_path)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    made = create_engine(url.replace("+asyncpg", "+psycopg"))
    yield made
    made.dispose()


@pytest.fixture
def filled(url: str, engine: Engine, command: CommandLine) -> str:
    """A database in which two handlers have worked."""
    assert command("db", "upgrade", "--database", url).code == 0
    with Session(engine) as session, session.begin():
        _fill(session, DEFAULT_TABLES)
    return url


def _fill(session: Session, tables: Tables) -> None:
    credit = consumers.bind(session, tables, name="credit", group="credit", topics=["payments"], ordering="key")
    consumers.bind(session, tables, name="mail", group="mail", topics=["payments"])
    connection = session.connection()
    ledger = Ledger(tables, dialect_for(connection.dialect.name, tables), credit)
    ids = [b"p-1", b"p-2", b"p-3"]
    claims = [Claim(one.ljust(16), one.decode(), b"f" * 16, Outcome.PROCESSED) for one in ids]
    waiting = [(6, 0.0), (7, 3600.0), (8, None)]
    claims += [Claim(f"p-{n}".encode().ljust(16), f"p-{n}", b"f" * 16, Outcome.PARKED) for n, _ in waiting]
    ledger.claim(connection, [*claims, Claim(b"p-4".ljust(16), "p-4", b"f" * 16, Outcome.DEAD)])
    outbox.append(connection, tables, [OutboxMessage("receipts", None, b"{}", ())] * 2)
    lot = ParkingLot(tables, ledger.dialect, credit)
    lot.park(connection, [_parked(n, wait) for n, wait in waiting])
    stand_ins = [replace(_parked(9, None), kind=Kind.HELD), replace(_parked(10, 0.0), kind=Kind.RELEASED)]
    old = lot.park(connection, [replace(one, digest=None) for one in stand_ins]).values()
    moved = update(tables.parked_messages).where(tables.parked_messages.c.id.in_(old))
    connection.execute(moved.values(parked_at=datetime.fromisoformat(OLD)))
    dead_letters.add(connection, tables, credit, [_dead(4, Reason.EXHAUSTED), _dead(5, Reason.UNDECODABLE, None)])


def _parked(offset: int, wait: float | None) -> ParkedMessage:
    return ParkedMessage(
        message=Message("payments", 1, offset, b"alice", b"secret", (), 1_700_000_000_000, "T1"),
        digest=f"p-{offset}".encode().ljust(16),
        message_id=f"p-{offset}",
        fingerprint=b"f" * 16,
        wait=wait,
    )


def _dead(offset: int, reason: Reason, digest: bytes | None = b"p-4".ljust(16)) -> DeadMessage:
    headers = (("message-id", b"p-4\x1b[2J"), ("raw", b"\xff"), ("none", None))
    return DeadMessage(
        message=Message(
            "payments", 1, offset, b"alice\x07", b"secret \xc3\xa9\x00\x1b]0;x", headers, 1_700_000_000_000, "T1"
        ),
        digest=digest,
        message_id="p-4\x1b[2J",
        reason=reason,
        error_type="shop.Timeout",
        error="no answer\nfrom \x1b[31mprovider",
        stack="Traceback:\n  line 1\x1b[2J",
        attempts=3,
        fingerprint=b"f" * 16,
        place="shop/worker.py:7 in charge",
    )


def test_upgrade_then_check(url: str, command: CommandLine) -> None:
    before = command("db", "check", "--database", url)
    assert (before.code, before.out) == (1, "")
    assert (
        before.err == "error: database: consumerkit's tables (consumerkit_*) are missing; run consumerkit db upgrade\n"
    )

    assert command("db", "upgrade", "--database", url) == (0, UPGRADED, "")
    assert command("db", "upgrade", "--database", url) == (0, "up to date\n", "")
    assert command("db", "check", "--database", url) == (0, "up to date\n", "")


def test_a_missing_right_names_the_way_out(command: CommandLine, postgres: PostgresServer, database: str) -> None:
    url, role = postgres.url(database), f"clerk_{database}"
    assert command("db", "upgrade", "--database", url).code == 0
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN"))
    clerk = engine.url.set(username=role).render_as_string(hide_password=False)
    try:
        answer = command("dead-letters", "list", "--database", clerk)
    finally:
        with engine.begin() as connection:
            connection.execute(text(f"DROP ROLE {role}"))
        engine.dispose()
    assert (answer.code, answer.out) == (2, "")
    assert "permission denied for table consumerkit_alembic_version; check the user's rights" in answer.err


def test_prefix_and_schema(command: CommandLine, postgres: PostgresServer, database: str) -> None:
    place = ("--database", postgres.url(database), "--prefix", "ck_", "--schema", "ledger")

    assert command("db", "upgrade", *place).out == UPGRADED

    assert command("db", "check", *place).code == 0
    assert "(consumerkit_*) are missing" in command("db", "check", "--database", postgres.url(database)).err
    assert command("db", "stats", *place).out == "no handler has started on this database yet\n\nthe outbox is empty\n"


def test_the_sql_is_printed_and_nothing_changed(url: str, command: CommandLine) -> None:
    answer = command("db", "upgrade", "--sql", "--database", url)

    assert answer.code == 0
    assert answer.out.startswith("BEGIN;\n\nCREATE TABLE consumerkit_alembic_version")
    assert answer.out.endswith("COMMIT;\n")
    assert command("db", "check", "--database", url).code == 1


def test_stats_count_by_handler_and_topic(filled: str, command: CommandLine) -> None:
    lines = command("db", "stats", "--database", filled).out.splitlines()
    assert re.split(r"  +", lines[0]) == [
        "handler",
        "processed",
        "latest",
        "parked",
        "due",
        "oldest parked",
        "held keys",
        "dead IDs",
        "dead letters by reason",
        "oldest dead",
    ]
    assert lines[1].split()[:2] == ["credit", "3"]
    assert re.search(r"  exhausted 1, undecodable 1  \d{4}-\S+ \S+Z$", lines[1])
    assert re.search(r" 3 +1 +\S+ \S+ +2 +1 ", lines[1])
    assert lines[2].split() == ["mail", "0", "0", "0", "0", "0"]
    assert lines[-2] == "outbox topic  waiting  oldest"
    assert re.fullmatch(r"receipts      2        \d{4}-\S+ \S+Z", lines[-1])

    told = json.loads(command("db", "stats", "--json", "--database", filled).out)
    assert told["outbox"]["receipts"].keys() == {"waiting", "oldest"}
    assert told["outbox"]["receipts"]["waiting"] == 2
    assert told["handlers"]["credit"]["dead_letters"] == {"exhausted": 1, "undecodable": 1}
    parked = told["handlers"]["credit"]["parked"]
    assert (parked["messages"], parked["due"], parked["held_keys"]) == (3, 1, 2)
    # What holds a key stands for a message that is counted among the dead letters: its age is none of a parked one's.
    assert parked["oldest"] > OLD
    assert told["handlers"]["credit"]["oldest_dead_letter"] > OLD
    assert told["handlers"]["mail"] == {
        "processed": 0,
        "latest": None,
        "parked": {"messages": 0, "due": 0, "oldest": None, "held_keys": 0},
        "undos": 0,
        "dead_letter_calls": 0,
        "dead": 0,
        "dead_letters": {},
        "oldest_dead_letter": None,
    }


def test_what_is_parked_of_topics_that_are_not_consumed_any_more_is_found(filled: str, engine: Engine) -> None:
    with Session(engine) as session:
        assert [*occupancy.left_behind(session, DEFAULT_TABLES, 1, ["orders"])] == [("payments", 5)]
        assert not occupancy.left_behind(session, DEFAULT_TABLES, 1, ["orders", "payments"])
        assert not occupancy.left_behind(session, DEFAULT_TABLES, 2, ["orders"])


def test_dead_letters_are_listed_newest_first_without_payloads(filled: str, command: CommandLine) -> None:
    answer = command("dead-letters", "list", "--database", filled)

    lines = answer.out.splitlines()
    assert lines[0].split() == ["id", "dead", "since", "handler", "reason", "message", "ID", "redrives", "error"]
    assert [line.split()[0] for line in lines[1:]] == ["2", "1"]
    assert r"shop.Timeout: no answer\nfrom \x1b[31mprovider" in lines[1]
    assert "secret" not in answer.out
    assert "\x1b" not in answer.out


@pytest.mark.parametrize(
    "options, ids",
    [
        (["--reason", "undecodable"], [2]),
        (["--handler", "mail"], []),
        (["--handler", "credit", "--limit", "1"], [2]),
        (["--before", "2"], [1]),
    ],
)
def test_dead_letters_are_chosen(filled: str, command: CommandLine, options: list[str], ids: list[int]) -> None:
    answer = command("dead-letters", "list", "--json", "--database", filled, *options)
    assert [json.loads(line)["id"] for line in answer.out.splitlines()] == ids


def test_pages_and_an_empty_list_say_so(filled: str, command: CommandLine) -> None:
    place = ("--database", filled)
    assert command("dead-letters", "list", *place, "--limit", "1").out.endswith("there may be more: --before 2\n")
    assert command("dead-letters", "list", *place, "--handler", "mail").out == "no dead letters\n"


def test_a_dead_letter_is_shown_without_its_payload_unless_asked(filled: str, command: CommandLine) -> None:
    answer = command("dead-letters", "show", "1", "--database", filled)

    assert answer.code == 0
    assert "origin       payments[1]@4 (topic ID T1)\n" in answer.out
    assert "reason       exhausted\n" in answer.out
    assert "payload      not shown; --value shows it\n" in answer.out
    assert answer.out.endswith("\nTraceback:\n  line 1\\x1b[2J\n")
    for secret in ("alice", "secret", "raw", "\x1b"):
        assert secret not in answer.out


def test_its_payload_is_shown_escaped(filled: str, command: CommandLine) -> None:
    out = command("dead-letters", "show", "1", "--value", "--database", filled).out

    assert "key          alice\\x07\n" in out
    assert "header       raw: \\xff\n" in out
    assert "header       none: (none)\n" in out
    assert "value        secret é\\x00\\x1b]0;x\n" in out
    assert "\x1b" not in out
    assert "\x00" not in out


def test_a_dead_letter_as_json(filled: str, command: CommandLine) -> None:
    told = json.loads(command("dead-letters", "show", "1", "--json", "--database", filled).out)
    assert (told["reason"], told["handler"], told["digest"]) == ("exhausted", "credit", b"p-4".ljust(16).hex())
    assert not {"key", "value", "headers"} & told.keys()

    told = json.loads(command("dead-letters", "show", "1", "--json", "--value", "--database", filled).out)
    assert told["value"] == "secret é\x00\x1b]0;x"
    assert told["headers"] == [["message-id", "p-4\x1b[2J"], ["raw", "\\xff"], ["none", None]]


def test_an_unknown_dead_letter_is_one_line(filled: str, command: CommandLine) -> None:
    answer = command("dead-letters", "show", "99", "--database", filled)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == "error: there is no dead letter 99; consumerkit dead-letters list shows what there is\n"


def test_a_database_out_of_reach_is_one_line_without_the_password(command: CommandLine) -> None:
    for driver in ("psycopg", "asyncpg"):
        answer = command("db", "check", "--database", f"postgresql+{driver}://u:hidden@127.0.0.1:1/x")
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.count("\n") == 1
        assert answer.err.startswith(f"error: Database(postgresql+{driver}://u:***@127.0.0.1:1/x): ")
        assert "hidden" not in answer.err


def test_a_sqlite_file_out_of_reach_is_one_line(command: CommandLine, tmp_path: Path) -> None:
    answer = command("db", "check", "--database", f"sqlite:///{tmp_path}/missing/x.sqlite")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "unable to open database file" in answer.err


def test_a_target_or_a_database_is_needed_and_not_both(command: CommandLine) -> None:
    assert command("db", "check").err == (
        "error: no database is named; give a target or --database URL, or set CONSUMERKIT_APP or CONSUMERKIT_DATABASE\n"
    )
    both = command("db", "check", "shop:worker", "--database", "sqlite://")
    assert (both.code, both.err) == (2, "error: give either a target or --database, not both\n")
    tables = command("db", "check", "shop:worker", "--schema", "ledger")
    assert tables.err == "error: --prefix and --schema go with --database; a target's worker has its own tables=\n"


APP = """
from consumerkit import Context, Handler, header
from consumerkit.storage.tables import Tables
from consumerkit.transports.memory import Memory, MemoryBroker
from consumerkit.worker import Worker

class Greet(Handler[bytes]):
    name = "greet"
    topic = "greetings"
    message_id = header("message-id")
    async def handle(self, event: bytes, context: Context) -> None: ...

def build():
    return Worker(database={url!r}, kafka=Memory(MemoryBroker()), handlers=[Greet()], tables=Tables(prefix="mine_"))
"""


def test_a_targets_database_and_tables_are_used(
    url: str, command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"app_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(APP.format(url=url))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONSUMERKIT_APP", f"{name}:build")

    assert command("db", "upgrade").out == UPGRADED

    assert command("db", "check", f"{name}:build").code == 0
    assert command("db", "check", "--database", url, "--prefix", "mine_").code == 0  # typed wins over the variable
    assert command("db", "check", "--database", url).code == 1


@pytest.mark.parametrize("arguments, code", [(["--version"], 0), (["db", "check"], 2), (["nonsense"], 2)])
def test_the_installed_command_ends_as_it_says(arguments: list[str], code: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "consumerkit", *arguments], capture_output=True, text=True, timeout=60, env={}
    )
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr


def test_dead_letters_are_grouped_by_error_and_place(filled: str, command: CommandLine) -> None:
    out = command("dead-letters", "groups", "--database", filled).out.splitlines()
    assert re.split("  +", out[0]) == ["letters", "last ID", "handler", "error type", "place", "oldest", "newest"]
    assert out[1].split()[:6] == ["2", "2", "credit", "shop.Timeout", "shop/worker.py:7", "in"]
    (told,) = command("dead-letters", "groups", "--json", "--database", filled).out.splitlines()
    assert json.loads(told)["letters"] == 2


def test_a_redrive_is_shown_before_it_is_made(filled: str, command: CommandLine) -> None:
    place = ("--database", filled)
    answer = command("dead-letters", "redrive", "--all", "--dry-run", *place)
    assert answer.code == 0
    assert answer.out.splitlines()[-1] == "2 would be redriven"
    assert r"payments[1]@4" in answer.out
    assert command("dead-letters", "list", "--json", *place).out.count("\n") == 2


def test_redriven_letters_leave_the_list_and_are_told_of(filled: str, command: CommandLine) -> None:
    place = ("--database", filled)
    answer = command("dead-letters", "redrive", "2", "--by", "ann", "--note", "retry", *place)
    assert (answer.code, answer.out, answer.err) == (0, "1 redriven\n", "")
    assert [json.loads(line)["id"] for line in command("dead-letters", "list", "--json", *place).out.splitlines()] == [
        1
    ]
    listed = command("dead-letters", "list", "--state", "all", "--json", *place).out.splitlines()
    assert [json.loads(line)["state"] for line in listed] == ["redriven", "dead"]
    shown = command("dead-letters", "show", "2", *place).out
    assert "redriven by ann, dead by shop.Timeout (undecodable) until then: retry\n" in shown
    assert "redrives     1\n" in shown
    again = command("dead-letters", "redrive", "2", *place)
    assert again.code == 0
    assert again.out.splitlines()[-1] == "1 not dead: it was redriven, resolved or discarded before"


def test_letters_are_closed_with_a_note(filled: str, command: CommandLine) -> None:
    place = ("--database", filled)
    assert command("dead-letters", "resolve", "1", *place).code == 2
    assert command("dead-letters", "resolve", "1", "--note", " ", *place).err == (
        "error: resolved letters need a note: say what was done, or why nothing will be\n"
    )
    assert command("dead-letters", "resolve", "1", "--note", "by hand", *place).out == "1 resolved\n"
    assert command("dead-letters", "discard", "--all", "--note", "a test", *place).out == "1 discarded\n"
    assert command("dead-letters", "list", *place).out == "no dead letters\n"
    stats = json.loads(command("db", "stats", "--json", *place).out)["handlers"]["credit"]
    assert (stats["processed"], stats["dead"], stats["dead_letters"]) == (4, 0, {})


def test_letters_are_exported_whole(filled: str, command: CommandLine) -> None:
    lines = command("dead-letters", "export", "1-2", "--database", filled).out.splitlines()
    first, second = map(json.loads, lines)
    assert (first["id"], second["id"], first["handler"], first["key"]) == (1, 2, "credit", "alice\x07")
    assert first["headers"] == [["message-id", "p-4\x1b[2J"], ["raw", {"base64": "/w=="}], ["none", None]]


LIKE_NOTHING = "no dead letter has the ID 99; see `consumerkit dead-letters groups` for one ID of each group"


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["redrive"], "no dead letter is chosen; give IDs, --handler, --reason, --like, --since or --until, or --all"),
        (
            ["redrive", "--handler", "unknown"],
            "no handler 'unknown' has started on this database; these have: 'credit', 'mail'",
        ),
        (["redrive", "1", "shop:worker", "x"], "'x' is neither an ID nor the target, which is 'shop:worker'"),
        (["redrive", "--all", "--rate", "0"], "rate=0.0: give a number greater than 0"),
        (["list", "--since", "soon"], "--since 'soon': write 2026-11-25T10:00, or 90m, 6h, 2d for so long ago"),
        (["redrive", "4-x"], "'4-x' is no ID and no range of IDs such as 7-12, nor module:attribute"),
        *(
            (
                [command, "--handler", "credits"],
                "no handler 'credits' has started on this database; these have: 'credit', 'mail'",
            )
            for command in ("list", "groups", "export")
        ),
        *(([command, "--like", "99"], LIKE_NOTHING) for command in ("list", "redrive", "export")),
        (["list", "--state", "gone"], "--state 'gone': use one of dead, redriven, resolved, discarded, all"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    filled: str, command: CommandLine, arguments: list[str], complaint: str
) -> None:
    answer = command("dead-letters", *arguments, "--database", filled)
    assert (answer.code, answer.out, answer.err) == (2, "", f"error: {complaint}\n")


def test_an_export_of_nothing_says_so(filled: str, command: CommandLine) -> None:
    place = ("--database", filled)
    assert command("dead-letters", "export", "--reason", "stale", *place) == (0, "", "")
    assert command("dead-letters", "export", "99", *place) == (
        1,
        "",
        "error: none of these is dead; --state all exports any\n",
    )
    assert (
        command("dead-letters", "export", "99", "--state", "all", *place).err
        == "error: none of these is a dead letter\n"
    )


def test_an_order_that_is_not_known_is_asked_for(filled: str, engine: Engine, command: CommandLine) -> None:
    with engine.begin() as connection:
        connection.execute(update(DEFAULT_TABLES.consumers).values(ordering=None))
    answer = command("dead-letters", "redrive", "--all", "--database", filled)
    assert answer.code == 2
    assert "start it once, then redrive" in answer.err


@pytest.mark.parametrize(
    "times, ids", [(["--since", "1h"], [2, 1]), (["--until", "1h"], []), (["--since", "2999-01-01"], [])]
)
def test_times_choose_letters(filled: str, command: CommandLine, times: list[str], ids: list[int]) -> None:
    answer = command("dead-letters", "list", "--json", "--database", filled, *times)
    assert [json.loads(line)["id"] for line in answer.out.splitlines()] == ids
