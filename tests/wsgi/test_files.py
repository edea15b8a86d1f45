"""``wsgi.file_wrapper``: files that the server sends itself, and files that are read."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asgiref._wsgi.response import FileWrapper

from .helpers import PATHSEND, ZEROCOPY, Client, Environ, Log, Message, answers, body_in, http, scope_with, serve


class FileClient(Client):
    """A server that sends files itself, and records whether they were open then."""

    def __init__(self, *messages: Any) -> None:
        super().__init__(*messages, on_send=self.note)
        self.file_body = b""
        self.files: list[Any] = []

    def note(self, message: Message) -> None:
        if message["type"] == ZEROCOPY:
            self.files.append(message["file"])
            self.file_body += os.pread(message["file"].fileno(), message["count"], message["offset"])
        elif message["type"] == PATHSEND:
            self.file_body += Path(message["path"]).read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    return path


class SendsFile:
    """An application that passes a file to the wrapper of the server, and keeps it for the test."""

    file: Any

    def __init__(self, open_file: Callable[[], Any], *headers: tuple[str, str], size: int | None = None) -> None:
        self.open_file, self.headers, self.size = open_file, list(headers), size

    def __call__(self, environ: Environ, start_response: Any) -> Any:
        self.file = self.open_file()
        start_response("200 OK", self.headers)
        wrapper = environ["wsgi.file_wrapper"]
        return wrapper(self.file) if self.size is None else wrapper(self.file, self.size)


def at(file: Any, offset: int) -> Any:
    file.seek(offset)
    return file


@pytest.mark.parametrize("extensions", [None, {}, {"http.response.push": {}}])
@pytest.mark.parametrize("size", [None, 3])
async def test_file_without_an_extension_is_read(path: Path, extensions: Any, size: int | None) -> None:
    application = SendsFile(lambda: path.open("rb"), size=size)
    client = await serve(application, scope=http(extensions=extensions))
    assert (b"0123456789", True) == (client.body, client.complete)
    assert application.file.closed


async def test_file_like_object_without_close() -> None:
    class Readable:
        def __init__(self) -> None:
            self.read = io.BytesIO(b"abc").read

    assert b"abc" == (await serve(SendsFile(Readable, size=2))).body


@pytest.mark.parametrize("buffering", [0, -1])
@pytest.mark.parametrize("offset", [0, 4])
async def test_file_by_its_descriptor(path: Path, buffering: int, offset: int) -> None:
    """From its current position. The file is open when the server gets it, and closed afterwards."""
    application = SendsFile(lambda: at(path.open("rb", buffering=buffering), offset))
    client = await serve(application, FileClient(), scope_with(ZEROCOPY, PATHSEND))
    length = b"%d" % (10 - offset)
    start, message = client.sent
    assert (200, [(b"content-length", length)]) == (start["status"], start["headers"])
    assert {"type": ZEROCOPY, "file": application.file, "offset": offset, "count": 10 - offset} == message
    assert isinstance(client, FileClient)
    assert b"0123456789"[offset:] == client.file_body
    assert application.file.closed


async def test_file_by_its_descriptor_as_far_as_the_length_says(path: Path) -> None:
    application = SendsFile(lambda: path.open("rb"), ("Content-Length", "3"))
    client = await serve(application, FileClient(), scope_with(ZEROCOPY))
    assert [(b"content-length", b"3")] == client.headers
    assert (0, 3) == (client.sent[1]["offset"], client.sent[1]["count"])
    assert 2 == len(client.sent)


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_no_file_for_a_length_of_zero(path: Path, extension: str, log: Log) -> None:
    """A server may send the whole file for a count of zero."""
    application = SendsFile(lambda: path.open("rb"), ("Content-Length", "0"))
    client = await serve(application, FileClient(), scope_with(extension))
    assert (b"", True, 2) == (client.body, client.complete, len(client.sent))
    assert "longer than its Content-Length" in log.only.getMessage()


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_wrapper_that_a_subclass_changes_is_iterated(path: Path, extension: str) -> None:
    class Numbered(FileWrapper):
        def __iter__(self) -> Iterator[bytes]:
            return (b"%d, " % number for number, _ in enumerate(super().__iter__()))

    client = await serve(answers(Numbered(path.open("rb"), 5)), FileClient(), scope_with(extension))
    assert (b"0, 1, ", True) == (client.body, client.complete)


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_file_that_is_shorter_than_the_length_says(path: Path, extension: str, log: Log) -> None:
    application = SendsFile(lambda: path.open("rb"), ("Content-Length", "11"))
    client = await serve(application, FileClient(), scope_with(extension))
    assert client.sent[-1]["more_body"]
    assert "1 byte(s) before its Content-Length" in log.only.getMessage()


@pytest.mark.parametrize("headers", [(), (("Content-Length", "10"),)])
async def test_whole_file_by_its_path(
    path: Path, headers: tuple[tuple[str, str], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is made absolute, as the extension requires."""
    monkeypatch.chdir(path.parent)
    application = SendsFile(lambda: opened(Path("file")), *headers)
    client = await serve(application, FileClient(), scope_with(PATHSEND))
    assert [(b"content-length", b"10")] == client.headers
    assert [{"type": PATHSEND, "path": str(path)}] == client.sent[1:]
    assert application.file.closed


def opened(path: Path) -> Any:
    return path.open("rb")


def replaced(path: Path) -> Any:
    file = path.open("rb")
    path.rename(path.with_name("other"))
    path.write_bytes(b"others")
    return file


def removed(path: Path) -> Any:
    file = path.open("rb")
    path.unlink()
    return file


def without_name(path: Path) -> Any:
    return os.fdopen(os.open(path, os.O_RDONLY), "rb")


def from_pipe(path: Path) -> Any:
    reader, writer = os.pipe()
    os.write(writer, b"0123456789")
    os.close(writer)
    return os.fdopen(reader, "rb", buffering=0)


def compressed(path: Path) -> Any:
    with gzip.open(path.with_name("compressed"), "wb") as file:
        file.write(b"0123456789")
    return gzip.open(path.with_name("compressed"))


class Lower(io.FileIO):
    """A file object whose bytes differ from those of the file."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(-1 if size is None else size).lower()


OTHER_FILES: dict[str, Callable[[Path], Any]] = {
    "in memory": lambda path: io.BytesIO(b"0123456789"),
    "compressed": compressed,
    "buffered, in memory": lambda path: io.BufferedReader(io.BytesIO(b"0123456789")),  # type: ignore[arg-type, unused-ignore]
    "buffered, compressed": lambda path: io.BufferedReader(compressed(path)),
    "subclass": lambda path: Lower(path),
    "open for writing too": lambda path: path.open("r+b"),
}


@pytest.mark.parametrize("make_file", OTHER_FILES.values(), ids=OTHER_FILES.keys())
@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_what_is_not_a_real_file_is_read(path: Path, make_file: Callable[[Path], Any], extension: str) -> None:
    """Only for a real file is it certain that its descriptor gives the same bytes."""
    application = SendsFile(lambda: make_file(path))
    client = await serve(application, FileClient(), scope_with(extension))
    assert (b"0123456789", True) == (client.body, client.complete)
    assert application.file.closed


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_request_body_as_the_file(extension: str) -> None:
    def application(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](environ["wsgi.input"])

    client = await serve(application, Client(*body_in(b"a", b"b")), scope_with(extension))
    assert (b"ab", True) == (client.body, client.complete)


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_pipe_is_read(path: Path, extension: str) -> None:
    client = await serve(SendsFile(lambda: from_pipe(path)), FileClient(), scope_with(extension))
    assert (b"0123456789", True) == (client.body, client.complete)


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_nothing_left_of_a_file(path: Path, extension: str) -> None:
    client = await serve(SendsFile(lambda: at(path.open("rb"), 10)), FileClient(), scope_with(extension))
    assert (b"", True, 2) == (client.body, client.complete, len(client.sent))


@pytest.mark.parametrize("open_file", [replaced, removed, without_name])
async def test_file_that_has_no_path_any_more_is_read(path: Path, open_file: Callable[[Path], Any]) -> None:
    """The path leads to another file, or to none."""
    client = await serve(SendsFile(lambda: open_file(path)), FileClient(), scope_with(PATHSEND))
    assert (b"0123456789", True) == (client.body, client.complete)


async def test_part_of_a_file_is_not_sent_by_path(path: Path) -> None:
    client = await serve(SendsFile(lambda: at(path.open("rb"), 4)), FileClient(), scope_with(PATHSEND))
    assert (b"456789", True) == (client.body, client.complete)


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_file_after_written_data_is_read(path: Path, extension: str) -> None:
    def application(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", [])(b"written, ")
        return environ["wsgi.file_wrapper"](path.open("rb"))

    client = await serve(application, FileClient(), scope_with(extension))
    assert (b"written, 0123456789", True) == (client.body, client.complete)


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_file_for_head_is_not_sent(path: Path, extension: str) -> None:
    application = SendsFile(lambda: path.open("rb"))
    client = await serve(application, FileClient(), scope_with(extension, method="HEAD"))
    assert ([(b"content-length", b"10")], b"", True) == (client.headers, client.body, client.complete)
    assert application.file.closed


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_file_without_start_response(path: Path, extension: str) -> None:
    with pytest.raises(RuntimeError, match="did not call start_response"):
        await serve(
            lambda environ, start_response: environ["wsgi.file_wrapper"](path.open("rb")), None, scope_with(extension)
        )


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_file_for_a_client_that_has_gone(path: Path, extension: str, log: Log) -> None:
    def leave(message: Message) -> None:
        raise OSError("gone")

    application = SendsFile(lambda: path.open("rb"))
    client = await serve(application, Client(on_send=leave), scope_with(extension))
    assert 1 == len(client.sent)
    assert application.file.closed
    assert [] == log.records


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_send_that_fails_with_a_file(path: Path, extension: str) -> None:
    """The application has not failed, but the server."""

    def fail(message: Message) -> None:
        raise LookupError("send")

    application = SendsFile(lambda: path.open("rb"))
    with pytest.raises(LookupError, match="send"):
        await serve(application, Client(on_send=fail), scope_with(extension))
    assert application.file.closed


async def test_relative_path_in_another_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    file = opened(Path("file"))
    monkeypatch.chdir("/")
    client = await serve(SendsFile(lambda: file), FileClient(), scope_with(PATHSEND))
    assert (b"0123456789", True) == (client.body, client.complete)
