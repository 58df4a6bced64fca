"""A headless Chromium driven over its own DevTools protocol: open a page, run JavaScript in it, use its keyboard, mouse and fingers,
take its picture."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import websocket

from mlops_assets_tests.conftest import wait_for

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome") or ""
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
#: Keys that have a name instead of a character: key code, and the text that they enter.
KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), "Backspace": (8, ""), "Escape": (27, ""), "ArrowDown": (40, ""), "End": (35, "")}
SHIFT = 8

#: Until what was done is on the screen: a touch before that meets what was there.
SHOWN = "new Promise(shown => requestAnimationFrame(() => requestAnimationFrame(shown)))"

Point = tuple[float, float]


class Page:
    """One tab."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self._number = 0
        self.problems: list[str] = []
        """What the page wrote to its console as an error, once `watch` was called."""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv())).get("id") != self._number:
            self._heard(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def _heard(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(event["params"]["exceptionDetails"]))
        if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.problems.append(event["params"]["entry"]["text"])

    def watch(self) -> None:
        """Collect errors of the page in `problems`: exceptions, what its security policy blocked, requests that failed."""
        self.call("Runtime.enable")
        self.call("Log.enable")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression (a promise is awaited)."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def first(self, script: str) -> str:
        """Run it in every page that is opened from now on, before the page's own scripts; returns what `no_more` takes."""
        self.call("Page.enable")
        return str(self.call("Page.addScriptToEvaluateOnNewDocument", source=script)["identifier"])

    def no_more(self, script: str) -> None:
        self.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)

    def open(self, url: str) -> None:
        self.run("window.isLeft = true")
        self.call("Page.navigate", url=url)
        wait_for(lambda: self.run("!window.isLeft && document.readyState === 'complete'"), f"{url} is loaded")
        # Touches of a page that has not been painted yet are dropped.
        wait_for(lambda: self.run("performance.getEntriesByName('first-contentful-paint').length"), f"{url} is seen")

    def text(self) -> str:
        return str(self.run("document.body?.innerText ?? ''"))

    def sees(self, words: str, seconds: float = 30) -> None:
        wait_for(lambda: words in self.text(), f"the page shows {words!r}", seconds)

    def press(self, key: str, *, shift: bool = False) -> None:
        """A key by its name or character, as `Input.dispatchKeyEvent` has them."""
        code, text = KEYS[key] if key in KEYS else (ord(key.upper()), key)
        name = key if key in KEYS else f"Digit{key}" if key.isdigit() else f"Key{key.upper()}"
        about = {"key": key, "code": name, "windowsVirtualKeyCode": code, "modifiers": SHIFT if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def centre(self, selector: str) -> Point:
        """Where an element is on the screen, brought into view first."""
        script = f"""(async () => {{ const one = document.querySelector({json.dumps(selector)}), before = scrollY;
            one.scrollIntoView({{block: "center"}});
            if (scrollY !== before) await {SHOWN};
            const box = one.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; }})()"""
        x, y = self.run(script)
        return x, y

    def click(self, selector: str) -> None:
        x, y = self.centre(selector)
        self.mouse("mousePressed", (x, y))
        self.mouse("mouseReleased", (x, y))

    def mouse(self, kind: str, at: Point) -> None:
        held = {"button": "left", "buttons": 0 if kind == "mouseReleased" else 1, "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], **held)

    def drag(self, points: Sequence[Point]) -> None:
        self.mouse("mousePressed", points[0])
        for point in points[1:]:
            self.mouse("mouseMoved", point)
        self.mouse("mouseReleased", points[-1])

    def fingers(self, kind: str, *at: Point) -> None:
        """`touchStart`, `touchMove` with the fingers that are down, `touchEnd` with those that stay."""
        self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(at)])

    def online(self, yes: bool) -> None:
        self.call("Network.enable")
        self.call("Network.emulateNetworkConditions", offline=not yes, latency=0, downloadThroughput=-1, uploadThroughput=-1)

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefers(self, **features: str) -> None:
        """Media features by name, `_` for `-`: `prefers_color_scheme="dark"`, `forced_colors="active"`."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": n.replace("_", "-"), "value": v} for n, v in features.items()])

    def picture(self, path: Path, *, width: int = 1400, height: int = 900) -> None:
        self.size(width, height)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._socket.close()


@contextmanager
def chromium() -> Iterator[Page]:
    """A browser with an empty profile and one tab; gone afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [PROGRAM, *QUIET.split(), f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            told = Path(profile) / "DevToolsActivePort"
            port = wait_for(lambda: told.exists() and told.read_text().split("\n")[0], "Chromium listens")
            tabs = httpx.get(f"http://127.0.0.1:{port}/json/list").json()
            page = Page(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"))
            try:
                yield page
            finally:
                page.close()
        finally:
            process.terminate()
            process.wait(30)
