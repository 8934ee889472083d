"""A real Chromium without a window, driven over a pipe by its DevTools protocol; nothing else is installed for it."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from tests.services.process import ServiceError

VARIABLE = "CONSUMERKIT_TEST_CHROMIUM"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# As root there is no sandbox, and a container's shared memory is small.
_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--remote-debugging-pipe",
)  # fmt: skip
# It takes commands from descriptor 3, and answers on 4, which may be in use at first.
_AT_3_AND_4 = """
import fcntl, os, sys
away = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3]]
for at, one in zip((3, 4), away):
    os.dup2(one, at)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Page:
    """A page in the browser."""

    def __init__(self, browser: "Chromium", session: str) -> None:
        self._browser = browser
        self._session = session

    def ask(self, method: str, **parameters: Any) -> Any:
        """Send the page a command."""
        return self._browser.ask(method, self._session, **parameters)

    def open(self, url: str) -> None:
        """Go to a URL."""
        self.ask("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href.startsWith('http')")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, or of the promise that it is.

        Raises:
            AssertionError: The page raised an error.
        """
        told = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def until(self, expression: str, within: float = 240.0) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + within
        while not self.evaluate(expression):
            assert time.monotonic() < end, (
                f"never true: {expression}; the page: {self.evaluate('document.body.innerText')}"
            )
            time.sleep(0.05)

    def click(self, selector: str, times: int = 1) -> None:
        """Press the mouse in the middle of an element, as a person does."""
        place = f"""(() => {{ const it = document.querySelector({json.dumps(selector)});
            it.scrollIntoView({{block: "center"}}); const at = it.getBoundingClientRect();
            return [at.x + at.width / 2, at.y + at.height / 2]; }})()"""
        for _ in range(times):
            x, y = self.evaluate(place)
            for kind in ("mousePressed", "mouseReleased"):
                self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, file: Path, *, width: int = 900, height: int = 900) -> None:
        """Write down what a person would see, as PNG."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        file.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))


class Chromium:
    """The browser; `with Chromium.start(directory) as browser`."""

    def __init__(self, process: "subprocess.Popen[bytes]", to_it: int, from_it: int) -> None:
        self._process = process
        self._to_it = os.fdopen(to_it, "wb", buffering=0)
        self._from_it = os.fdopen(from_it, "rb")
        self._number = 0
        self._read = b""

    @classmethod
    def start(cls, directory: Path) -> Self:
        """Start it, with a profile of its own in a directory.

        Raises:
            ServiceError: There is no Chromium.
        """
        found = os.environ.get(VARIABLE) or next(filter(None, map(shutil.which, _NAMES)), None)
        if found is None:
            raise ServiceError(
                "no Chromium found for the tests of the shop's page; on Debian: apt-get install chromium; "
                f"or name one by {VARIABLE}"
            )
        in_it, to_it = os.pipe()
        from_it, out_of_it = os.pipe()
        options = [*_OPTIONS, f"--user-data-dir={directory / 'chromium'}", "about:blank"]
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _AT_3_AND_4, str(in_it), str(out_of_it), found, *options],
            pass_fds=(in_it, out_of_it), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(directory)},
        )  # fmt: skip
        os.close(in_it)
        os.close(out_of_it)
        return cls(process, to_it, from_it)

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """Send a command, and return its result; events are passed over."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            command["sessionId"] = session
        self._to_it.write(json.dumps(command).encode() + b"\0")
        while (told := self._next()).get("id") != self._number:
            pass
        assert "error" not in told, f"{method}: {told['error']}"
        return told["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            more = self._from_it.read1(1 << 16)
            assert more, f"Chromium has ended: {self._process.wait()}"
            self._read += more
        line, _, self._read = self._read.partition(b"\0")
        told: dict[str, Any] = json.loads(line)
        return told

    def new_page(self, before: str = "") -> Page:
        """Return a new page, which runs a script before each document of its own."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        page.ask("Page.enable")
        if before:
            page.ask("Page.addScriptToEvaluateOnNewDocument", source=before)
        return page

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._to_it.close()  # which ends it
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._from_it.close()
