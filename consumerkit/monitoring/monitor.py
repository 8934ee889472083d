"""Monitoring of a worker process and of a supervisor's processes; `consumerkit run --http` switches it on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from consumerkit.concurrency import beating
from consumerkit.errors import StartError
from consumerkit.monitoring.backlog import keep_measuring
from consumerkit.monitoring.health import BEAT, Pulse, forget_the_dead, report, together
from consumerkit.monitoring.server import serving
from consumerkit.worker import Worker

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from consumerkit.monitoring.metrics import Metrics

_DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"  # prometheus-client's own variable
_REPORTS: Final = "CONSUMERKIT_MONITORING"


def check_installed() -> None:
    """Check that the library for metrics is installed.

    Raises:
        StartError: prometheus-client is not installed.
    """
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise StartError(
            "--http needs prometheus-client; install consumerkit[metrics], such as: pip install 'consumerkit[metrics]'"
        ) from None


@asynccontextmanager
async def monitored(worker: Worker, place: tuple[str, int] | None) -> AsyncIterator[int | None]:
    """Monitor a worker in this process until the block ends.

    Under a supervisor that monitors, the process reports to it; else it serves on `place` and
    yields the port.

    Raises:
        StartError: The port is taken.
    """
    directory = os.environ.pop(_REPORTS, None)
    if directory is None and place is None:
        yield None
        return
    from consumerkit.monitoring.metrics import Metrics

    registry = _fresh_registry()
    async with measured(worker, Metrics(registry)) as pulse:
        if directory is not None:
            with _reporting(Path(directory), pulse):
                yield None
        else:
            assert place is not None
            with serving(place, pulse.health, lambda: registry) as port:
                yield port


@asynccontextmanager
async def measured(worker: Worker, metrics: Metrics) -> AsyncIterator[Pulse]:
    """Measure a worker until the block ends: its work, and every 30 seconds what waits for it.

    Args:
        worker: A worker that has not started yet.
        metrics: The metrics that show the measurements.

    Example:
        async with measured(worker, OpenTelemetryMetrics()), worker:
            ...
    """
    worker.observe(metrics)
    metrics.measuring(declared.name for declared in worker.declarations)
    pulse = Pulse(worker, stall_timeout=worker.stall_timeout, tell=metrics.beat)
    over = asyncio.Event()
    async with _beside(over, pulse.run(over), keep_measuring(worker, metrics.measured, over)):
        yield pulse


@contextmanager
def supervised(place: tuple[str, int], workers: int) -> Iterator[int]:
    """Serve the joint reports of a supervisor's worker processes until the block ends; yield the port.

    Raises:
        StartError: The port is taken.
    """
    directory = Path(tempfile.mkdtemp(prefix="consumerkit-monitoring-"))
    os.environ[_DIRECTORY] = os.environ[_REPORTS] = str(directory)

    def registry() -> CollectorRegistry:
        from prometheus_client.multiprocess import mark_process_dead

        for process in forget_the_dead(directory):
            mark_process_dead(process, str(directory))  # type: ignore[no-untyped-call]
        return registry_of(directory)

    try:
        with serving(place, lambda: together(directory, workers), registry) as port:
            yield port
    finally:
        del os.environ[_DIRECTORY], os.environ[_REPORTS]
        shutil.rmtree(directory, ignore_errors=True)


def registry_of(directory: Path) -> CollectorRegistry:
    """Return the metrics of all processes that write theirs to a directory."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    class NonEmpty(MultiProcessCollector):
        """Skips empty files: reading one fails, and a process has just made it, or died while doing so."""

        def collect(self) -> Any:
            """Return the metrics of all files."""
            return self.merge([str(file) for file in directory.glob("*.db") if _size(file)])  # type: ignore[no-untyped-call]

    made = CollectorRegistry()
    NonEmpty(made, str(directory))  # type: ignore[no-untyped-call]
    return made


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # its process has ended, and another request has removed the file
        return 0


def _fresh_registry() -> CollectorRegistry:
    from prometheus_client import CollectorRegistry

    return CollectorRegistry()


@contextmanager
def _reporting(directory: Path, pulse: Pulse) -> Iterator[None]:
    """Report this process's health from a thread, so that a blocked event loop is reported too."""

    def work() -> None:
        with contextlib.suppress(OSError):  # no room, or the supervisor is gone
            report(directory, pulse.health())

    with beating(work, BEAT, name="consumerkit-report"):
        yield


@asynccontextmanager
async def _beside(over: asyncio.Event, *works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run coroutines beside the block; at its end set `over` and wait for them."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        over.set()
        await asyncio.gather(*tasks, return_exceptions=True)
