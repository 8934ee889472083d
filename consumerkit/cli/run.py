"""`consumerkit run`: consumes until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from consumerkit.cli import target as targets
from consumerkit.cli.output import complain, exit_code
from consumerkit.cli.reloading import watched
from consumerkit.cli.signals import exit_within, listen, say_stopping
from consumerkit.cli.typed import TRACEBACK, wants_traceback, without_typed
from consumerkit.errors import ConfigurationError, ConsumerkitError
from consumerkit.events import Event, PartitionsAssigned, WorkerStarted
from consumerkit.monitoring.health import Pulse
from consumerkit.monitoring.monitor import check_installed, monitored, supervised
from consumerkit.monitoring.server import address
from consumerkit.observability.logs import configure
from consumerkit.observability.shown_errors import show_errors
from consumerkit.supervisor import CLEAN, FAILED, GRACE_EXCEEDED, Lifeline, Notifier, Supervisor
from consumerkit.supervisor.changes import python_changes
from consumerkit.supervisor.peers import Peers
from consumerkit.worker import Worker

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

# Seconds in which the interpreter may end by itself: a hanging thread of a handler would delay it
# for ever.
_EXIT_WITHIN = 3.0
# Seconds after which a worker counts as working without a partition: its group may have none for
# it.
_WITHOUT_PARTITIONS = 15.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Call:
    """The task of one worker process.

    `processes` is the number of processes, for the budget of database connections; `place` is where
    the process serves its health; `grace` replaces the worker's own grace.
    """

    target: str
    only: Sequence[str]
    adopt: Sequence[str]
    processes: int
    place: tuple[str, int] | None
    grace: float | None = None


def run(
    target: targets.TargetArgument = None,
    workers: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Worker processes.")] = 1,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Run this handler only; can be repeated.", show_default=False),
    ] = None,
    adopt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Accept that this handler's group or topics changed, or that it takes another handler's group; can "
            "be repeated.",
            show_default=False,
        ),
    ] = None,
    log_format: Annotated[LogFormat, typer.Option(metavar="text|json", help="Log lines as text or as JSON.")] = "text",
    log_level: Annotated[LogLevel, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = "info",
    http: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Serve /live, /ready and /metrics here, such as 127.0.0.1:8080.",
            show_default=False,
        ),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=86_400,
            metavar="SECONDS",
            help="Stop within this time, instead of the worker's own grace.",
            show_default=False,
        ),
    ] = None,
    show: Annotated[
        bool | None,
        typer.Option(
            "--show-errors/--hide-errors",
            help="Log each failure's text and traceback; a text may quote a payload. On by default on a terminal.",
            show_default=False,
        ),
    ] = None,
    reload: Annotated[
        bool,
        typer.Option(
            "--reload",
            help="For development: replace the worker processes when a Python file changes that lies in the working "
            "directory, in the target's package, or below them.",
        ),
    ] = False,
    reload_dir: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR", help="Watch this directory instead, with --reload; can be repeated.", show_default=False
        ),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, max=1000, hidden=True)] = 1,
) -> None:
    """Run the worker until SIGTERM or Ctrl-C.

    The first signal stops fetching: the worker finishes or rolls back its batches within its grace. A second signal
    ends it at once. With several processes, one that ends is started again, and SIGHUP replaces them one by one.

    Exit status: 0 stopped cleanly, 1 failed, 2 could not start, 3 did not stop within its grace, 71 ended by the
    watchdog.
    """
    configure(log_format, log_level)
    shown = sys.stderr.isatty() if show is None else show
    show_errors(shown)
    spec = targets.given(target)
    place = None if http is None else address(http)
    if place is not None:
        check_installed()
    if reload_dir and not reload:
        raise ConfigurationError("--reload-dir needs --reload")
    changes = python_changes(watched(spec, reload_dir or ())) if reload else None
    if workers > 1 or reload:
        command = [sys.executable, "-m", "consumerkit", "run", spec]
        command += [f"--only={name}" for name in only or ()] + [f"--adopt={name}" for name in adopt or ()]
        command += [f"--log-format={log_format}", f"--log-level={log_level}", f"--processes={workers}"]
        command += ["--show-errors" if shown else "--hide-errors"]
        command += [] if grace is None else [f"--grace={grace}"]
        command += [TRACEBACK] if wants_traceback() else []
        with nullcontext() if place is None else supervised(place, workers) as port:
            _say_where(place, port)
            raise typer.Exit(asyncio.run(Supervisor(command, workers, notifier=Notifier(), changes=changes).run()))
    raise typer.Exit(
        asyncio.run(
            _consume_or_complain(
                _Call(spec, only or (), adopt or (), processes, place, grace), as_log=log_format == "json"
            )
        )
    )


class _Works:
    """Reports to supervisors that this process works: each handler has partitions, or has got none for a while."""

    def __init__(self, *tell: Callable[[], None]) -> None:
        self._listeners = tell
        self._awaited: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Record an event."""
        if isinstance(event, WorkerStarted):
            self._awaited = set(event.handlers)
            asyncio.get_running_loop().call_later(_WITHOUT_PARTITIONS, self._tell)
        elif isinstance(event, PartitionsAssigned):
            self._awaited.discard(event.handler)
            if not self._awaited:
                self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()


async def _consume_or_complain(call: _Call, *, as_log: bool) -> int:
    """Consume, and print an error here, as the interpreter may not end by itself."""
    code = FAILED
    try:
        code = await _consume(call)
    except ConsumerkitError as error:
        code = exit_code(error)
        if as_log:
            _log.critical("%s", without_typed(str(error)))
        else:
            complain(error)
    except Exception:  # noqa: BLE001 - the process ends here, and logs why
        _log.exception("the worker failed")
    finally:
        exit_within(_EXIT_WITHIN, code)
    return code


async def _consume(call: _Call) -> int:
    lifeline = Lifeline()
    lifeline.hold()
    notifier = Notifier()
    stopping = asyncio.Event()
    loaded: list[Worker] = []
    listen(stopping, lambda: say_stopping(loaded, notifier))
    async with targets.opened(call.target) as worker:
        loaded.append(worker)
        worker.processes = call.processes
        if call.only:
            worker.only(call.only)
        if call.adopt:
            worker.adopt(call.adopt)
        if call.grace is not None:
            worker.grace = call.grace
        lifeline.tell_grace(worker.grace)
        Peers(lifeline, worker).start()
        worker.observe(_Works(lifeline.tell_works, notifier.ready))
        await asyncio.sleep(0)  # handles a signal that came while the target was being loaded
        async with monitored(worker, call.place) as port, living(worker, notifier):
            _say_where(call.place, port)
            clean = stopping.is_set() or await worker.run(stopping)
    return CLEAN if clean else GRACE_EXCEEDED


def _say_where(place: tuple[str, int] | None, port: int | None) -> None:
    if place is not None and port is not None:
        _log.info("/live, /ready and /metrics are served on %s:%d", place[0], port)


@contextlib.asynccontextmanager
async def living(worker: Worker, notifier: Notifier) -> AsyncIterator[None]:
    """Give systemd signs of life, unless the event loop has been blocked for longer than `stall_timeout`."""
    if notifier.watchdog is None:
        yield
        return
    pulse, over = Pulse(worker, stall_timeout=worker.stall_timeout), asyncio.Event()
    beating = asyncio.create_task(pulse.run(over))
    try:
        with notifier.living(lambda: pulse.health().live):
            yield
    finally:
        over.set()
        await beating
