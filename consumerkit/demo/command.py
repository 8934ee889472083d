"""`consumerkit demo`: everything at once, on this machine alone."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from consumerkit.demo import books, payments
from consumerkit.demo.broker import DemoLog
from consumerkit.demo.display import Display, Tally
from consumerkit.demo.payments import PaymentPlan
from consumerkit.demo.play import Play
from consumerkit.demo.scene import DemoScene
from consumerkit.demo.shop import DEAD_LETTER_TOPIC, TOPIC, CreditAccount
from consumerkit.demo.show import Show
from consumerkit.errors import ConfigurationError
from consumerkit.transports.embedded import EmbeddedBroker


def demo(
    payment_count: Annotated[
        int,
        typer.Option("--payments", min=payments.FEWEST, max=payments.MOST, metavar="N", help="Payments to make."),
    ] = 4_000,
    kills: Annotated[int, typer.Option(min=0, max=50, metavar="N", help="Worker processes to kill.")] = 3,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Make the same payments again.", show_default="random")
    ] = None,
    stay: Annotated[
        bool, typer.Option("--stay", help="Keep broker and database until Ctrl-C, to look around.")
    ] = False,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Leave database and logs in this directory.", show_default="a temporary one"),
    ] = None,
) -> None:
    """Handle thousands of payments, kill workers, and check every balance.

    Nothing is installed for it: the Kafka broker is part of the client library, the database a SQLite file. Two worker
    processes run, and one is killed with SIGKILL again and again. Exit status 0 if every balance is right, else 1.
    """
    number = random.randrange(1_000_000) if seed is None else seed
    plan = payments.plan(payment_count, number)
    with _directory(keep) as directory:
        balanced = asyncio.run(_until_sigterm(_demo(directory, plan, kills, number, kept=keep is not None, stay=stay)))
        if not balanced:
            raise typer.Exit(1)


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    """Yield an empty directory; remove it after success or Ctrl-C, unless it is to be kept."""
    if keep is not None:
        if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
            raise ConfigurationError(f"--keep {keep}: this is not an empty directory; name another one")
        keep.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="consumerkit-demo-")) if keep is None else keep.resolve()
    wanted = True
    try:
        yield path
        wanted = keep is not None
    except KeyboardInterrupt:
        wanted = keep is not None
        raise
    finally:
        if wanted:
            print(f"database and logs are in {path}")
        else:
            shutil.rmtree(path, ignore_errors=True)


async def _until_sigterm(work: Coroutine[Any, Any, bool]) -> bool:
    """End by SIGTERM as by Ctrl-C, which leaves no process behind.

    Raises:
        KeyboardInterrupt: One of the two signals came.
    """
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _demo(directory: Path, plan: PaymentPlan, kills: int, seed: int, *, kept: bool, stay: bool) -> bool:
    show = Show()
    began = time.monotonic()
    with EmbeddedBroker(TOPIC, DEAD_LETTER_TOPIC) as broker:
        scene, log = DemoScene(directory, broker.bootstrap), DemoLog(broker.bootstrap, CreditAccount.name)
        show.opening(scene, plan, kills, seed)
        await scene.set_up()
        with Display(show.console, Tally(total=len(plan.records), distinct=plan.distinct)) as display:
            play = Play(scene, plan, log, kills, display)
            await play.run()
        checks = [*books.audit(scene, plan, log), books.killed(play.killed, kills)]
        balanced = show.verdict(checks, books.dead_letters(scene), time.monotonic() - began)
        show.next_steps(scene, kept=kept, stay=stay)
        if stay:
            await _told_to_end()
    return balanced


async def _told_to_end() -> None:
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await told.wait()
