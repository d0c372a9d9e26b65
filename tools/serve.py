"""Show the built book at http://127.0.0.1:8000 (`make serve`, or `make serve PORT=8001`)."""

import os
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    """Serves a folder, to this machine only."""

    allow_reuse_address = os.name != "nt"  # on Windows two servers could then have one port

    def __init__(self, folder: Path, port: int):
        super().__init__(("127.0.0.1", port), partial(Quiet, directory=folder))
        self.address = f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request, client_address):
        # A browser that goes to another page drops what it has asked for.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def main(port: str = "8000", folder: Path = HTML) -> None:
    """Serve the folder until Ctrl-C; port 0 is any that is free."""
    if not (folder / "index.html").exists():
        sys.exit("There is no book to show. Build it first: make book")
    try:
        server = Server(folder, int(port))
    except (ValueError, OverflowError):
        sys.exit(f"{port} is no port. Give a number from 1024 to 65535: make serve PORT=8001")
    except OSError as error:
        other = 8001 if int(port) < 1024 else int(port) % 65535 + 1
        sys.exit(f"Port {port} cannot be had: {error.strerror}. Try: make serve PORT={other}")
    with server:
        try:
            print(f"The book is at {server.address} (Ctrl-C ends this)", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main(*sys.argv[1:2])
