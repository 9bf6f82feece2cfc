"""A headless Chromium for tests, through chromedriver's HTTP interface (W3C WebDriver)."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

SECONDS_TO_START = 120


def missing() -> str | None:
    """Says what has to be installed for a browser; None if everything is there."""
    names = {"chromedriver": "chromium-driver", "chromium": "chromium"}
    absent = [package for program, package in names.items() if shutil.which(program) is None]
    return f"needs Debian's {' and '.join(absent)}" if absent else None


class Browser:
    """One browser with one page; use it in a ``with`` block."""

    def __enter__(self) -> Browser:
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            self._address = f"http://127.0.0.1:{self._port()}"
            arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
            options = {"args": arguments, "binary": shutil.which("chromium")}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            answer = self._post("/session", {"capabilities": {"alwaysMatch": wanted}})
            self._address += f"/session/{answer['sessionId']}"
        except BaseException:
            self._driver.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._send("DELETE", "", None)
        finally:
            self._driver.terminate()
            self._driver.wait(30)

    def open(self, page: Path) -> None:
        """Opens a file and waits until it is loaded."""
        self._post("/url", {"url": page.resolve().as_uri()})

    def evaluate(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression."""
        return self._post("/execute/sync", {"script": f"return {expression};", "args": []})

    def look(self, *, width: int, height: int = 800, dark: bool = False) -> None:
        """Sets the size of the screen in CSS pixels and the colour scheme that the reader prefers."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", {"features": [scheme]})

    def screenshot(self, file: Path) -> None:
        """Writes the whole page as PNG."""
        shot = self.devtools("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True})
        file.write_bytes(base64.b64decode(shot["data"]))

    def printed(self) -> bytes:
        """Returns the page as a PDF."""
        return base64.b64decode(self.devtools("Page.printToPDF", {"printBackground": True})["data"])

    def messages(self) -> list[str]:
        """Returns what the console has said since the last call."""
        return [f"{entry['level']}: {entry['message']}" for entry in self._post("/se/log", {"type": "browser"})]

    def devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        """Sends a command of the DevTools protocol."""
        return self._post("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _port(self) -> str:
        assert self._driver.stdout is not None
        until = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < until:
            line = self._driver.stdout.readline()
            if found := re.search(r"started successfully on port (\d+)", line):
                return found[1]
            if not line and self._driver.poll() is not None:
                break
        raise RuntimeError("chromedriver did not start")

    def _post(self, path: str, content: dict[str, Any]) -> Any:
        return self._send("POST", path, content)

    def _send(self, method: str, path: str, content: dict[str, Any] | None) -> Any:
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            self._address + path, body, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=180) as answer:
                return json.loads(answer.read())["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.read().decode()[:500]}") from None
