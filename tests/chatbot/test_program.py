"""``python -m examples.chatbot`` as a process: signals and error messages."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import asgiref

from ..helpers import LIMIT, ROOT
from .helpers import HOST


@contextlib.contextmanager
def program(path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``python -m examples.chatbot``; it must end in the block, and is killed after twice the limit of a wait."""
    paths = [str(Path(asgiref.__file__).parent.parent), str(ROOT)]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "examples.chatbot", "--database", str(path), *options],
        cwd=path.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        # Reading its output has no limit.
        timer = threading.Timer(2 * LIMIT, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            timer.join()
            process.kill()


def output_until(process: subprocess.Popen[str], part: str) -> str:
    """Return the next line of the output that contains *part*; the end of the program ends the wait."""
    assert process.stdout is not None
    return next(line for line in process.stdout if part in line)


class Caller:
    """A client with a socket, whose waits have a limit."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.settimeout(LIMIT)
        self._file = connection.makefile("r", encoding="utf-8", newline="\n")

    def send(self, *lines: str) -> None:
        self._connection.sendall("".join(line + "\r\n" for line in lines).encode())

    def until(self, part: str) -> str:
        return next(line.rstrip("\r\n") for line in self._file if part in line)

    def rest(self) -> str:
        return self._file.read()

    def close(self) -> None:
        self._file.close()
        self._connection.close()


@contextlib.contextmanager
def caller(process: subprocess.Popen[str], name: str) -> Iterator[Caller]:
    """Give a client in the chat room of *process*, with the bot there."""
    port = int(output_until(process, "nc localhost").split()[-1])
    output_until(process, "Connected as notes.")
    caller = Caller(socket.create_connection((HOST, port)))
    try:
        caller.send(name)
        caller.until("Here: notes.")
        yield caller
    finally:
        caller.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_program_ends_in_order(path: Path, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM ends it without a traceback and with status 0; the notes are there at the next start."""
    for expected in ["You have no notes.", "1: milk"]:
        with program(path, "--port", "0") as process, caller(process, "ada") as ada:
            ada.send("/notes list")
            assert f"(notes to you) {expected}" == ada.until("to you")
            ada.send("/notes remember milk")
            ada.until("to you")
            process.send_signal(number)
            assert "* notes has left\n" in ada.rest()
            output, _ = process.communicate(timeout=LIMIT)
            assert (0, "Stopping; messages in progress have 5 s.\nEnded.\n") == (process.returncode, output)
    assert [path.name] == [file.name for file in path.parent.iterdir()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_a_second_interrupt_ends_the_program_at_once(path: Path) -> None:
    """1. An answer is not confirmed.

    2. The first Ctrl-C waits. 3. The second one does not. 4. The next start sends the answer.
    """
    with socket.create_server((HOST, 0)) as listening:
        listening.settimeout(LIMIT)
        port = listening.getsockname()[1]
        for patience in ["1000", "0"]:
            with program(path, "--irc", f"{HOST}:{port}", "--grace", patience) as process:
                server = Caller(listening.accept()[0])
                try:
                    server.until("USER")
                    server.send(":irc.example 001 notes :Welcome")
                    if patience == "1000":
                        server.send(":ada!a@host PRIVMSG notes :remember milk")
                    assert "NOTICE ada :Noted. That makes 1." == server.until("NOTICE")
                    server.until("PING :said-")
                    process.send_signal(signal.SIGINT)
                    output_until(process, "Stopping")
                    if patience == "1000":
                        process.send_signal(signal.SIGINT)
                    output, _ = process.communicate(timeout=LIMIT)
                    # The second one may interrupt any code, so asyncio may log more.
                    assert (0, "Ended.\n") == (process.returncode, output[:7])
                finally:
                    server.close()


@pytest.mark.slow
def test_the_program_says_what_is_wrong(path: Path) -> None:
    """A port in use, a file that cannot be opened, and wrong options are explained in one line."""
    with socket.create_server((HOST, 0)) as listening:
        port = str(listening.getsockname()[1])
        for expected, status, options in [
            ("take another one with --port", 2, ["--port", port]),
            ("unable to open database file", 1, ["--port", "0", "--database", str(path / "missing" / "x")]),
            ("'irc.example' is not HOST:PORT", 2, ["--irc", "irc.example"]),
            ("invalid word value: 'a b'", 2, ["--nick", "a b"]),
        ]:
            with program(path, *options) as process:
                output, _ = process.communicate(timeout=LIMIT)
                assert status == process.returncode, output
                assert expected in output
                assert "Traceback" not in output
