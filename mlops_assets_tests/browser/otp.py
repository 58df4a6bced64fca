"""The page `/otp` with all that it talks to: a model server with a small real model of digits, and the demo back-end."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from mlops_assets import otp_demo
from mlops_assets.settings import Settings
from mlops_assets.store import ObjectStore
from mlops_assets_tests.browser.chromium import Page
from mlops_assets_tests.browser.drawing import DIGITS, draw_with_finger, pictures
from mlops_assets_tests.conftest import wait_for
from mlops_assets_tests.factories import World, config_of
from mlops_assets_tests.serving.bundles import make_digits_bundle
from mlops_assets_tests.serving.running import Running, promote, register_folder, running, until

if TYPE_CHECKING:
    from sqlalchemy import Engine

SECRET = "a secret of tests, long enough to be one"
#: Speech is written down, and digits are read soon after the finger is lifted, as somebody chose who had that remembered.
BEFORE = (
    Path(__file__).with_name("speech.js").read_text(encoding="utf-8")
    + """localStorage.setItem("otp-guidance", '{"voice": "own", "pause": "0.8", "speed": "1"}');"""
)


@dataclass
class Place:
    """Both servers, and one tab."""

    page: Page
    server: Running
    demo_url: str

    def fresh(self) -> None:
        """As a browser is that has not been used, on a telephone."""
        self.page.problems.clear()
        self.page.online(True)
        self.page.size(390, 844)
        self.page.prefers()

    def start(self, lang: str = "en", **query: Any) -> str:
        """A code is given out and its page opened, as a person does it; returns the code."""
        self.page.open(f"{self.demo_url}/?lang={lang}")
        code = str(self.page.run("document.getElementById('code').value"))
        link = self.page.run("document.getElementById('draw').href")
        self.open(link + "".join(f"&{name}={value}" for name, value in query.items()))
        return code

    def practise(self, lang: str = "en", **query: Any) -> None:
        self.open(f"{self.server.url}/otp?lang={lang}" + "".join(f"&{name}={value}" for name, value in query.items()))

    def open(self, link: str) -> None:
        self.page.open(link)
        wait_for(lambda: self.page.run("document.querySelectorAll('#pause option').length"), "the page is ready")

    def says(self, words: str) -> None:
        wait_for(lambda: words in self.line, f"the page says {words!r} (it says {self.line!r})", 15)

    @property
    def line(self) -> str:
        return str(self.page.run("document.getElementById('said').textContent"))

    @property
    def entered(self) -> str:
        return str(self.page.run("document.getElementById('code').value"))

    def write(self, digit: str, *, read: bool = True) -> None:
        """Draw a digit with a finger; `read`: press the button, and wait until it is known what it was."""
        before = len(self.entered)
        draw_with_finger(self.page, DIGITS[digit])
        if read:
            self.page.click("#read")
            wait_for(lambda: len(self.entered) > before, f"{digit} is read", 15)

    def sent(self, path: str) -> list[Any]:
        """Bodies of what the page has sent to addresses that end so."""
        return list(self.page.run(f"sent.filter(one => one.url.split('?')[0].endsWith({json.dumps(path)})).map(one => one.body)"))

    def spoken(self) -> list[str]:
        return list(self.page.run("said.map(one => one.text)"))

    def focus(self) -> str:
        return str(self.page.run("document.activeElement.id || document.activeElement.value || document.activeElement.tagName"))


@contextmanager
def place(page: Page, engine: Engine, settings: Settings, store: ObjectStore, folder: Path) -> Iterator[Place]:
    config = config_of("digits", mode="manual")
    world = World(engine, settings, store, system="digits", config=config)
    promote(world, register_folder(world, make_digits_bundle(folder, pictures()), config), config)
    with running(settings.model_copy(update={"otp_secret": SECRET})) as server:
        until(lambda: server.version("digits") == 1, what="digits served")
        with demo(server.url) as url:
            page.watch()
            page.first(BEFORE)
            yield Place(page, server, url)


@contextmanager
def demo(server_url: str) -> Iterator[str]:
    """The demo back-end on a free port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    app = otp_demo.create_app(SECRET, server_url, url)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield url
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
