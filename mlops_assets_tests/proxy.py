"""A TCP proxy in front of a service, so that a test can cut it: connections end in the middle, new ones are refused or swallowed."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from mlops_assets_tests.conftest import free_port


class Proxy:
    """`127.0.0.1:<port>` -> `host:target`, or a Unix socket. Use as a context manager."""

    def __init__(self, target: int | str, host: str = "127.0.0.1") -> None:
        self._target: tuple[str, int] | str = (host, target) if isinstance(target, int) else target
        self.port = free_port()
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._left: int | None = None

    def __enter__(self) -> Proxy:
        self.restore()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def restore(self) -> None:
        """Accept and forward (again)."""
        self._left = None
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen()
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self) -> None:
        """Reset every connection and refuse new ones, as when the service is gone."""
        with self._lock:
            listener, self._listener = self._listener, None
            sockets, self._open = self._open, set()
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()
        for one in sockets:
            _reset(one)

    def cut_after(self, count: int) -> None:
        """Cut by itself once the service has sent so many more bytes: in the middle of an answer."""
        self._left = count

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                service = socket.socket(socket.AF_UNIX if isinstance(self._target, str) else socket.AF_INET)
                service.connect(self._target)
            except OSError:
                _reset(client)
                continue
            with self._lock:
                gone = self._listener is not listener
                if not gone:
                    self._open |= {client, service}
            if gone:
                _reset(client)
                _reset(service)
                return
            threading.Thread(target=self._both_ways, args=(client, service), daemon=True).start()

    def _both_ways(self, client: socket.socket, service: socket.socket) -> None:
        """Until both sides have ended; then nothing of it is kept open."""
        back = threading.Thread(target=self._forward, args=(service, client, True), daemon=True)
        back.start()
        self._forward(client, service, False)
        back.join()
        with self._lock:
            self._open -= {client, service}
        client.close()
        service.close()

    def _forward(self, source: socket.socket, target: socket.socket, answer: bool) -> None:
        try:
            while data := source.recv(16384):
                if answer and self._left is not None:
                    if self._left <= len(data):
                        target.sendall(data[: self._left])
                        self.cut()
                        return
                    self._left -= len(data)
                target.sendall(data)
        except OSError:
            pass
        finally:
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)


def _reset(one: socket.socket) -> None:
    """Close with RST: the other side learns of it at once."""
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    one.close()
