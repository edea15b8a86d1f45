"""The documentation: commands of its first pages are run, outputs compared, names checked; its code is narrow."""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import asgiref

from ..helpers import LIMIT, ROOT
from ..servers import HOST, Server, _serve, _wait_until_it_accepts

DOCS = ROOT / "docs"
GUIDES = DOCS / "guides"
TUTORIAL = ROOT / "examples" / "tutorial"

pytestmark = pytest.mark.slow


def console(page: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Yield each command on *page*, and the lines that the page shows below it."""
    for block in re.findall(r"\.\. code-block:: console\n\n((?:   .*\n|\n)+)", page.read_text()):
        for typed in block.replace("\n   ", "\n").strip().split("$ ")[1:]:
            command, *output = typed.strip().splitlines()
            yield command.split(), output


@contextlib.contextmanager
def serving(application: str, directory: Path) -> Iterator[str]:
    """Serve *application*, a file in *directory*, with uvicorn; yield the address."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    server = Server("uvicorn", (HOST, port), directory / "log")
    with contextlib.contextmanager(_serve)(server, ("uvicorn",), f"uvicorn --port {port} {application}"):
        yield f"http://{HOST}:{port}"


def run(*command: str | Path, directory: Path) -> str:
    """Run Python, which must succeed, and return its output."""
    path = os.pathsep.join([str(Path(asgiref.__file__).parent.parent), str(ROOT)])
    process = subprocess.run(
        [sys.executable, *command],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        timeout=LIMIT,
        text=True,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


def get(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=LIMIT) as response:
        text: str = response.read().decode()
    return text


def test_what_the_pages_tell_to_type(tmp_path: Path) -> None:
    """The commands of docs/start.rst and some guides, in this order, print what the pages show."""
    for package in ("django", "flask", "httpx"):
        pytest.importorskip(package)
    for file in TUTORIAL.glob("*.py"):
        shutil.copy(file, tmp_path)
    compared = 0
    with contextlib.ExitStack() as running:
        address = ""
        for command, output in [
            *console(DOCS / "start.rst"),
            *console(GUIDES / "clients.rst"),
            *console(GUIDES / "processes.rst"),
        ]:
            command = [word.replace("http://127.0.0.1:8000", address) for word in command]
            match command:
                case ["python", "-m", "pip", "install", ".", *packages]:
                    assert all(importlib.util.find_spec(package) for package in packages)
                case ["python", script, *arguments]:
                    assert output == run(script, *arguments, directory=tmp_path).splitlines()
                    compared += 1
                case ["uvicorn", application]:
                    running.close()
                    address = running.enter_context(serving(application, tmp_path))
                case ["curl", url]:
                    assert output == get(url).splitlines()
                    compared += 1
                case _:
                    pytest.fail(f"who types {command}?")
    assert compared == 8


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="no SIGUSR2")
@pytest.mark.parametrize("page", ["README.rst", "docs/guides/hanging.rst"])
def test_what_a_stuck_django_request_prints(page: str, tmp_path: Path) -> None:
    """The output on the page is that of the program, except for times and the frames that "..." replaces."""
    pytest.importorskip("django")
    shutil.copy(TUTORIAL / "stuck.py", tmp_path)
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    server = Server("uvicorn", (HOST, port), tmp_path / "log")
    path = os.pathsep.join([str(Path(asgiref.__file__).parent.parent), str(ROOT)])
    with (
        server.log_file.open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "--loop", "asyncio", "--port", str(port), "stuck:application"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            stderr=subprocess.STDOUT,
            stdout=log,
        ) as process,
    ):
        try:
            _wait_until_it_accepts(server, process)
            with socket.create_connection((HOST, port), LIMIT) as client:
                client.sendall(b"GET /buy/apples HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                deadline = time.monotonic() + LIMIT
                while "with stock:" not in server.log:  # the request may not have reached the lock yet
                    assert time.monotonic() < deadline, server.log
                    process.send_signal(signal.SIGUSR2)
                    time.sleep(0.2)
        finally:
            process.kill()
    text = (ROOT / page).read_text()
    shown = re.search(r"^( +)sync_to_async\(reserve\), running for .*\n(?:\1.*\n)+", text, re.MULTILINE)
    assert shown

    def without_chance(text: str) -> str:
        text = re.sub(r'File "(?:[^"]*/)?([^"/]+)", line \d+', r'File "\1"', text)
        text = re.sub(r"running for .* s, since [\d:]+", "running", text)
        return re.sub(r"Task-\d+|worker \d+", "N", text)

    want = without_chance(textwrap.dedent(shown[0]))
    got = without_chance(server.log)
    got = "sync_to_async(reserve), running\n" + got.rpartition("sync_to_async(reserve), running\n")[2]
    assert doctest.OutputChecker().check_output(want, got, doctest.ELLIPSIS), got


def test_irc_bot(tmp_path: Path) -> None:
    """The bot prints what docs/guides/irc-bot.rst shows; this test is the server."""
    shown = re.findall(r"^   <(\w+)> (.*)", (GUIDES / "irc-bot.rst").read_text(), re.MULTILINE)
    asked = [(name, text) for name, text in shown if name != "counter"]
    answers = [text for name, text in shown if name == "counter"]
    with socket.create_server((HOST, 0)) as listening:
        listening.settimeout(LIMIT)
        port = listening.getsockname()[1]
        path = os.pathsep.join([str(Path(asgiref.__file__).parent.parent), str(ROOT)])
        with subprocess.Popen(
            [sys.executable, TUTORIAL / "ircbot.py", HOST, str(port), "counter", "#test"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.STDOUT,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                connection, _ = listening.accept()
                connection.settimeout(LIMIT)
                with connection, connection.makefile("rw", newline="\r\n") as lines:

                    def tell(line: str) -> None:
                        lines.write(f"{line}\r\n")
                        lines.flush()

                    assert ["NICK counter\r\n", "USER counter 0 * :counter\r\n"] == [lines.readline() for _ in range(2)]
                    tell(":server 001 counter :Welcome")
                    assert lines.readline() == "JOIN #test\r\n"
                    tell("PING :server")
                    assert lines.readline() == "PONG :server\r\n"
                    tell(":ada!a@host PRIVMSG #test :not for the bot")
                    for (name, text), answer in zip(asked, answers, strict=True):
                        tell(f":{name}!{name}@host PRIVMSG #test :{text}")
                        assert lines.readline() == f"PRIVMSG #test :{answer}\r\n"
                output, _ = process.communicate(timeout=LIMIT)
                assert (process.returncode, output) == (0, "")
            finally:
                process.kill()


def test_tests_of_a_django_site(tmp_path: Path) -> None:
    pytest.importorskip("django")
    code = """
import sys
import django
from django.conf import settings
settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
    MIGRATION_MODULES={"auth": None, "contenttypes": None},
)
django.setup()
from django.test.runner import DiscoverRunner
sys.exit(DiscoverRunner().run_tests(["examples.tutorial.django_tests", "examples.tutorial.django_questions"]))
"""
    assert "Ran 6 tests" in run("-c", code, directory=tmp_path)


@pytest.mark.parametrize("server", ["daphne", "granian", "gunicorn", "hypercorn", "uvicorn"])
def test_options_of_servers_exist(server: str, tmp_path: Path) -> None:
    """Each option in docs/guides/servers.rst is an option of that server, as installed here."""
    pytest.importorskip(server)
    section = re.search(
        rf"^{server}\n-+\n(.*?)(?=^\w+\n-+$|\Z)", (GUIDES / "servers.rst").read_text(), re.MULTILINE | re.DOTALL
    )
    assert section
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", section[1]))
    offered = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", run("-m", server, "--help", directory=tmp_path)))
    assert named
    assert set() == named - offered


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("guides/cancellation", {"timeout", "cancellation"}),
        ("guides/clients", {"connection pool"}),
        ("guides/django", {"ORM"}),
        ("guides/hanging", {"deadlock", "hang"}),
        ("guides/managers", {"rollback", "transaction"}),
        ("guides/processes", {"multiprocessing", "fork"}),
        ("guides/request-id", {"request id", "logging"}),
        ("guides/scripts", {"Celery", "notebook"}),
        ("guides/servers", {"gunicorn", "uvicorn", "uWSGI"}),
        ("guides/testing", {"pytest"}),
        ("guides/threads", {"parallel", "thread pool"}),
        ("guides/websockets", {"close codes"}),
        ("platforms", {"Windows", "macOS", "license", "vulnerability"}),
    ],
)
def test_words_that_people_search_for(page: str, words: set[str]) -> None:
    """The search of the documentation shows index entries first."""
    entries = (DOCS / f"{page}.rst").read_text().splitlines()[0].removeprefix(".. index:: ")
    assert words <= {entry.removeprefix("! ") for entry in entries.split(", ")}


def code_of(page: str) -> Iterator[str]:
    """Yield the lines of the code on *page*: literal blocks, code blocks, doctests."""
    outside: int | None = None  # the indentation of the line that a block belongs to
    first = -1  # the indentation of the first line of the block
    in_doctest = False
    for line in page.splitlines():
        indentation = len(line) - len(line.lstrip())
        if outside is not None and (not line or indentation > outside):
            first = indentation if first < 0 and line else first
            yield line[first:]
            continue
        outside, first = None, -1
        in_doctest = bool(line) and (in_doctest or line.lstrip().startswith(">>> "))
        if in_doctest:
            yield line.lstrip()
        elif re.match(r" *\.\. code-block::", line) or (line.endswith("::") and not re.match(r" *\.\. ", line)):
            outside = indentation


@pytest.mark.parametrize("page", [ROOT / "README.rst", *DOCS.rglob("*.rst")], ids=lambda page: page.stem)
def test_code_fits_into_80_columns(page: Path) -> None:
    """Longer lines scroll on the page, even on a wide screen."""
    text = page.read_text()
    assert [] == [line for line in code_of(text) if len(line) > 79]
    for file in re.findall(r"^.. literalinclude:: (.*)", text, re.MULTILINE):
        assert [] == [line for line in (page.parent / file).read_text().splitlines() if len(line) > 79]


def test_code_is_found() -> None:
    page = (
        "A::\n\n    one\n      two\n\n>>> three\nfour\n\n.. note:: B\n\n   .. code-block:: text\n\n      five\n\n   C"
    )
    assert ["one", "  two", ">>> three", "four", "five"] == [line for line in code_of(page) if line]


def test_every_guide_is_two_clicks_away() -> None:
    table = (GUIDES / "index.rst").read_text().partition(".. toctree::")[0]
    linked = set(re.findall(r":doc:`([\w-]+)`", table))
    assert {path.stem for path in GUIDES.glob("*.rst")} - {"index"} == linked
    assert ":doc:`guides/index`" in (DOCS / "index.rst").read_text()


def test_what_the_contributors_page_names_exists() -> None:
    page = (DOCS / "contributing.rst").read_text()
    files = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert files == set(re.findall(r"\btest_\w+", page))


def test_every_module_of_the_package_has_its_line_on_the_design_page() -> None:
    page = (DOCS / "design.rst").read_text()
    rooms = page.partition("Modules\n")[2].partition("Imports run one way")[0]
    rows = re.findall(r"^(``\w+``(?:, ``\w+``)*) ", rooms, re.MULTILINE)
    modules = {path.stem for path in Path(asgiref.__file__).parent.rglob("*.py")} - {"__init__"}
    assert modules == {name for row in rows for name in re.findall(r"\w+", row)}
