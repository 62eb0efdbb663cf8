"""A headless Chromium, driven by the DevTools protocol over a pipe."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

PATIENCE_S = 60
KEYS = {"Tab": 9, "Enter": 13, " ": 32, "End": 35, "Home": 36, "ArrowUp": 38, "ArrowDown": 40}
"""Names of keys and their virtual key codes."""


def executable() -> str | None:
    """$RAPO_JAX_CHROMIUM, or a Chromium or Chrome on the path."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = (shutil.which(name) for name in (os.environ.get("RAPO_JAX_CHROMIUM", ""), *names))
    return next(filter(None, found), None)


class Browser:
    """One page of a Chromium with a new profile; `errors` collects what its console reports."""

    def __init__(self, program: str, profile: Path) -> None:
        from_us, to_browser = os.pipe()
        from_browser, to_us = os.pipe()
        flags = "--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --no-first-run"
        command = f'exec "$0" "$@" 3<&{from_us} 4>&{to_us}'  # the descriptors that it expects
        line = ["bash", "-c", command, program, *flags.split(), f"--user-data-dir={profile}"]
        log = open(profile.with_suffix(".log"), "wb")
        self._process = subprocess.Popen(
            line, pass_fds=(from_us, to_us), stdout=log, stderr=log, start_new_session=True
        )
        for descriptor in (from_us, to_us):
            os.close(descriptor)
        self._to, self._from, self._left = to_browser, from_browser, b""
        self._calls, self._session = 0, ""
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command; messages before it are read too."""
        self._calls += 1
        message: dict[str, Any] = {"id": self._calls, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._calls:
            pass
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def open(self, path: Path, *, width: int = 1200, dark: bool = False) -> None:
        """Loads a file at a width in CSS pixels, in the light or the dark scheme."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        while self.run("document.readyState") != "complete" or self.run("location.protocol") != (
            "file:"
        ):
            time.sleep(0.05)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Presses keys of `KEYS`, one after another."""
        for key in keys:
            text = {"Enter": "\r", " ": " "}.get(key, "")
            shared = {"key": key, "code": "Space" if key == " " else key, "text": text}
            shared["windowsVirtualKeyCode"] = KEYS[key]
            for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, **shared)

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._from], [], [], PATIENCE_S)
            part = os.read(self._from, 1 << 16) if ready else b""
            assert part, "Chromium ended, or does not answer"
            self._left += part
        line, _, self._left = self._left.partition(b"\0")
        message = json.loads(line)
        name, values = message.get("method"), message.get("params", {})
        said = name == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning")
        logged = name == "Log.entryAdded" and values["entry"]["level"] == "error"
        if said or logged or name in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
            self.errors.append(json.dumps(values))
        return message
