"""Headless Chromium for the tests of the report page, controlled through its debugging pipe."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path


class Browser:
    """Messages are JSON, each ended by a zero byte."""

    def __init__(self, executable: str, profile: Path):
        ours_in, theirs_out = os.pipe()
        theirs_in, self.out = os.pipe()

        def as_3_and_4() -> None:  # Chromium reads from descriptor 3 and writes to 4
            spare = [os.dup2(fd, number) for fd, number in ((theirs_in, 103), (theirs_out, 104))]
            os.dup2(spare[0], 3)
            os.dup2(spare[1], 4)

        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--remote-debugging-pipe", "--mute-audio", f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([executable, *flags], preexec_fn=as_3_and_4, close_fds=False, **quiet)
        os.close(theirs_in)
        os.close(theirs_out)
        self.reader, self.number, self.events, self.session = os.fdopen(ours_in, "rb"), 0, [], None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: object) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> dict:
        content = bytearray()
        while (byte := self.reader.read(1)) != b"\0":
            assert byte, "the browser has ended"
            content += byte
        return json.loads(content)

    def open(self, url: str, width: int, dark: bool = False) -> None:
        """Show a page in a window of this width."""
        self.events.clear()
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.send("Page.navigate", url=url)
        for _ in range(300):
            if self.value("document.readyState") == "complete" and self.value("location.href") != "about:blank":
                return
            time.sleep(0.1)
        raise AssertionError("the page does not load")

    def value(self, expression: str) -> object:
        """The value of a JavaScript expression. Waits for a promise."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def problems(self) -> list[dict]:
        """Everything that went wrong on the page, and every request that left this disk."""
        self.value("1")
        return [event for event in self.events if _is_problem(event.get("method"), event.get("params", {}))]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self.reader.close()
        os.close(self.out)


def _is_problem(method: str | None, content: dict) -> bool:
    if method == "Network.loadingFailed":
        return not content.get("canceled")  # players cancel downloads that they do not need
    if method == "Runtime.consoleAPICalled":
        return content["type"] in ("error", "warning", "assert")
    if method == "Network.requestWillBeSent":
        return not content["request"]["url"].startswith(("file:", "data:"))
    return method in ("Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening")
