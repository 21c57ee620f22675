"""A headless Chromium, spoken to over a pipe: for tests of what a page does where it is read."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-default-apps --disable-dev-shm-usage "
    "--remote-debugging-pipe --hide-scrollbars"
).split()


class Page:
    """One tab. Messages of the DevTools protocol go out on one pipe and come in on another."""

    def __init__(self, send: int, receive: int) -> None:
        self.send, self.receive = send, receive
        self.numbers = count(1)
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        self.waiting = b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something, and wait for its answer; events on the way are kept."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self.waiting:
            chunk = os.read(self.receive, 1 << 16)
            assert chunk, "the browser is gone"
            self.waiting += chunk
        text, _, self.waiting = self.waiting.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def run(self, script: str) -> Any:
        """The value of an expression, awaited; what it throws fails the test."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def look(self, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Be a screen of so many pixels, of someone who likes it light or dark."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def open(self, file: Path, fragment: str = "", until: str = "true") -> None:
        """Open a file, and wait until an expression holds in it."""
        self.call("Page.navigate", url=file.resolve().as_uri() + fragment)
        self.wait(until)

    def wait(self, until: str) -> None:
        """Wait until an expression holds in the page, as it is drawn frame by frame."""
        frame = "new Promise((next) => setTimeout(next, 20))"
        script = (
            "(async () => { for (let i = 0; i < 1000; i++) { "
            f"if (document.readyState === 'complete' && ({until})) return true; await {frame}; }} "
            "return false; })()"
        )
        assert self.run(script), f"never came: {until}"

    def picture(self, file: Path, top: int = 0, height: int = 900) -> Path:
        """A screenshot as PNG, as wide as the screen, of some of the height of the page."""
        clip = {"x": 0, "y": top, "width": self.run("innerWidth"), "height": height, "scale": 1}
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(found["data"]))
        return file

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and refusals by the page's policy."""
        told = []
        for event in self.events:
            method, facts = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                told.append(str(facts["exceptionDetails"]))
            if method == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
                told.append(facts["entry"]["text"])
            if method == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning"):
                told.append(str(facts["args"]))
        return told

    def requests(self) -> list[str]:
        """Every URL that was asked for."""
        sent = (e for e in self.events if e.get("method") == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page of a fresh browser that keeps its profile in `folder`; gone at the end."""
    assert CHROMIUM
    theirs_in, send = os.pipe()
    receive, theirs_out = os.pipe()
    # The protocol's pipes are the descriptors 3 and 4.
    script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
    command = ["bash", "-c", script, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={folder}"]
    process = subprocess.Popen(
        command,
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Page(send, receive)
    finally:
        os.close(send)
        os.close(receive)
        process.terminate()
        process.wait(20)
