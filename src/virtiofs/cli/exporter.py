# SPDX-License-Identifier: Apache-2.0
"""A daemon's metrics over HTTP on the loopback address, for a Prometheus that scrapes.

It is a process of its own, which asks the control socket: what any local user may send never reaches the daemon,
which asks its workers at most once a second for all of them together.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from virtiofs.daemon import notify

ADDRESS = "127.0.0.1"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_CLIENTS = 16
# How long a client may take for its request and for the answer, together.
CLIENT_SECONDS = 10.0
FRESH_SECONDS = 1.0


class Kept:
    """What `ask` says, asked for again when it is older than a second.  Raises what `ask` does."""

    def __init__(self, ask: Callable[[], str]):
        self._ask = ask
        self._lock = threading.Lock()
        self._text = ""
        self._asked = float("-inf")

    def text(self) -> str:
        with self._lock:
            if time.monotonic() - self._asked >= FRESH_SECONDS:
                self._text = self._ask()
                self._asked = time.monotonic()
            return self._text


class Exporter(ThreadingHTTPServer):
    """Answers GET /metrics on `port` (0: any) of the loopback address with what `ask` says.

    Raises `OSError` if it can not listen.
    """

    daemon_threads = True
    request_queue_size = MAX_CLIENTS

    def __init__(self, port: int, ask: Callable[[], str]):
        self.kept = Kept(ask)
        self._places = threading.BoundedSemaphore(MAX_CLIENTS)
        super().__init__((ADDRESS, port), Handler)

    def server_bind(self) -> None:
        """Bind, and ask no name server who we are."""
        socket.socket.bind(self.socket, self.server_address)
        self.server_name, self.server_port = ADDRESS, self.socket.getsockname()[1]

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:  # type: ignore[override]
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._places.release()
            raise

    def process_request_thread(self, request: socket.socket, client_address: tuple[str, int]) -> None:  # type: ignore[override]
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went, or was cut off, is no news."""


class Handler(BaseHTTPRequestHandler):
    """One request of one client."""

    server: Exporter
    server_version = "virtiofs"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self._cut = threading.Timer(CLIENT_SECONDS, self._cut_off)
        self._cut.daemon = True
        self._cut.start()

    def finish(self) -> None:
        self._cut.cancel()
        super().finish()

    def _cut_off(self) -> None:
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is over

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self._answer(404, "the metrics are at /metrics\n")
            return
        try:
            self._answer(200, self.server.kept.text())
        except (OSError, ValueError) as error:
            self._answer(503, f"the daemon does not answer: {error}\n")

    do_HEAD = do_GET

    def _answer(self, status: int, text: str) -> None:
        data = text.encode(errors="replace")
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line for each scrape tells nobody anything."""


def serve(port: int, ask: Callable[[], str]) -> int:
    """Answer until interrupted.  Prints the address.  Raises `OSError` if the port can not be had."""
    with Exporter(port, ask) as exporter:
        print(f"http://{ADDRESS}:{exporter.server_port}/metrics", flush=True)
        notify.service_manager("READY=1")
        exporter.serve_forever()
    return 0
