"""How the built book is shown: where, to whom, and what is said where that cannot be."""

import errno
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

import build_book
import pytest
import serve

PROGRAM = """\
import pathlib, signal, sys
import serve
signal.signal(signal.SIGINT, signal.default_int_handler)
serve.main(sys.argv[1], pathlib.Path(sys.argv[2]))
"""
LARGE = 20_000_000  # more than a socket holds


@pytest.fixture
def book(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "index.html").write_text("the first page")
    (tmp_path / "notebooks" / "chapter.html").write_text("한국어", "utf-8")
    (tmp_path / "large.bin").write_bytes(bytes(LARGE))
    return tmp_path


def start(book, port=0):
    """Start it in a process of its own; return that, and the address which it says."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(port), book],
        env={**os.environ, "PYTHONPATH": str(Path(serve.__file__).parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process, re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0]


@contextmanager
def served(book, port=0):
    """Its address, while it runs; then Ctrl-C has to end it without another word."""
    process, address = start(book, port)
    try:
        yield address
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)
        assert (process.returncode, *said) == (0, "\n", "")
    finally:
        process.kill()
        process.wait()


def get(address):
    opener = build_opener(ProxyHandler({}))
    with opener.open(address, timeout=30) as answer:
        return answer.read().decode("utf-8")


def test_it_shows_the_book_that_is_built():
    assert serve.HTML == build_book.Place(build_book.ROOT, small=False).html


def test_pages_are_served_until_ctrl_c(book):
    with served(book) as address:
        assert get(address) == "the first page"
        assert get(f"{address}notebooks/chapter.html") == "한국어"
        with pytest.raises(HTTPError, match="404"):
            get(f"{address}missing.html")
    with pytest.raises(OSError, match="refused"):
        get(address)


def test_nothing_outside_the_book_is_served(book, tmp_path_factory):
    secret = tmp_path_factory.mktemp("outside") / "secret.txt"
    secret.write_text("secret")
    with served(book) as address:
        for way in (f"../{secret.parent.name}/{secret.name}", f"/{secret}"):
            with pytest.raises(HTTPError, match="404"):
                get(f"{address}{way}")


def test_other_machines_do_not_reach_it(book):
    with served(book) as address, socket.socket() as other:
        other.settimeout(2)
        with pytest.raises(OSError):  # noqa: PT011 (each system has its own)
            other.connect(("127.0.0.2", urlsplit(address).port))


def test_a_browser_that_leaves_a_page_or_keeps_a_connection_disturbs_nothing(book):
    with served(book) as address:
        port = urlsplit(address).port
        with socket.create_connection(("127.0.0.1", port)) as leaves:
            leaves.sendall(b"GET /large.bin HTTP/1.0\r\n\r\n")
            assert leaves.recv(100)
            leaves.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        kept = socket.create_connection(("127.0.0.1", port))
        assert get(address) == "the first page"
    kept.close()


def test_a_port_can_be_chosen_and_had_again_at_once(book):
    with served(book) as address:
        get(address)
    with served(book, urlsplit(address).port) as again:
        assert again == address
        assert get(address) == "the first page"


# --- What is said ---------------------------------------------------------------------------------


def test_without_a_book_it_says_how_to_build_one(tmp_path):
    with pytest.raises(SystemExit, match=r"^There is no book to show\. .*make book$"):
        serve.main("0", tmp_path)


def test_a_port_that_is_taken_is_one_sentence_with_another_to_try(book):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            serve.main(str(port), book)
    said = ended.value.code
    assert said.startswith(f"Port {port} cannot be had: {os.strerror(errno.EADDRINUSE)}.")
    assert "\n" not in said
    other = int(re.search(r"Try: make serve PORT=(\d+)$", said)[1])
    assert other != port


@pytest.mark.parametrize("port", ["-1", "65536", "http", "80a"])
def test_what_is_no_port_is_one_sentence(book, port):
    with pytest.raises(SystemExit, match=f"^{port} is no port.*make serve PORT=8001$"):
        serve.main(port, book)
