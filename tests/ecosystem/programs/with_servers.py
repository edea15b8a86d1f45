"""A Django site under the usual servers: views of each kind, uploads, and a stop while requests are in flight."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from driving import HOST, LIMIT, Program, free_port, started, wait_until

ASGI = "site_under_test.asgi:application"
WSGI = "site_under_test.wsgi:application"
GUNICORN = "gunicorn --workers 1 --graceful-timeout 60 --timeout 90 --bind {host}:{port}"
SERVERS = {
    "uvicorn-asyncio": f"uvicorn --loop asyncio --host {{host}} --port {{port}} {ASGI}",
    "uvicorn-uvloop": f"uvicorn --loop uvloop --host {{host}} --port {{port}} {ASGI}",
    "hypercorn": f"hypercorn --graceful-timeout 60 --bind {{host}}:{{port}} {ASGI}",
    "daphne": f"daphne --bind {{host}} --port {{port}} {ASGI}",
    "granian": f"granian --interface asgi --host {{host}} --port {{port}} {ASGI}",
    "gunicorn-uvicorn": f"{GUNICORN} --worker-class uvicorn_worker.UvicornWorker {ASGI}",
    "gunicorn-gthread": f"{GUNICORN} --worker-class gthread --threads 60 --preload {WSGI}",
    "uwsgi": "uwsgi --http-socket {host}:{port} --master --processes 1 --enable-threads --threads 60 --need-app"
    " --hook-master-start 'unix_signal:15 gracefully_kill_them_all'"
    # Without this option, uWSGI forks without Python's fork handlers.
    " --py-call-uwsgi-fork-hooks --module site_under_test.wsgi:application",
    "waitress": f"waitress-serve --threads 60 --host {{host}} --port {{port}} {WSGI}",
}
# These drop requests in flight.
DROPPING = {"daphne", "waitress"}
REQUESTS = 50
STARTS = 10
# In seconds, with a process that may be stuck.
PATIENCE = 10.0


class Site:
    def __init__(self, program: Program, port: int, directory: Path) -> None:
        self.program, self.directory = program, directory
        self.address = f"http://{HOST}:{port}"

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.address, timeout=LIMIT, limits=httpx.Limits(max_connections=None))


@contextlib.contextmanager
def serve(server: str, directory: Path) -> Iterator[Site]:
    port = free_port()
    with started(SERVERS[server].format(host=HOST, port=port), directory, SITE_DIRECTORY=str(directory)) as program:
        program.wait_for_port(port)
        yield Site(program, port, directory)


@pytest.fixture(scope="module", params=SERVERS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serve(request.param, tmp_path_factory.mktemp(request.param)) as site:
        yield site


@pytest.mark.parametrize("view", ["plain", "coroutine"])
async def test_concurrent_requests_keep_apart(site: Site, view: str) -> None:
    async with site.client() as client:
        names = [f"name-{number}" for number in range(30)]
        responses = await asyncio.gather(*(client.get(f"/{view}/", params={"name": name}) for name in names))
    for name, response in zip(names, responses, strict=True):
        seen = {"variable": name, "local": name, "answer": 42}
        assert {"here": seen, "below": seen, "same thread": True} == response.json()


@pytest.mark.parametrize("view", ["parts", "parts_of_coroutine"])
async def test_streams(site: Site, view: str) -> None:
    async with site.client() as client:
        names = [f"name-{number}" for number in range(5)]
        responses = await asyncio.gather(*(client.get(f"/{view}/", params={"name": name}) for name in names))
    for name, response in zip(names, responses, strict=True):
        assert [f"{number} of {name}" for number in range(100)] == response.text.splitlines()


@pytest.mark.parametrize("view", ["upload", "upload_to_coroutine"])
async def test_upload(site: Site, view: str) -> None:
    content = bytes(range(256)) * 4 * 1024 * 5  # 5 MiB
    async with site.client() as client:
        response = await client.post(f"/{view}/", files={"file": content}, data={"text": "beside it"})
    expected = {"length": len(content), "digest": hashlib.sha256(content).hexdigest(), "text": "beside it"}
    assert expected == response.json()


@pytest.mark.parametrize("view", ["held", "held_coroutine"])
@pytest.mark.parametrize("server", SERVERS)
async def test_stops_with_requests_in_flight(server: str, view: str, tmp_path: Path) -> None:
    with serve(server, tmp_path) as site:
        async with site.client() as client:
            requests = [
                asyncio.ensure_future(client.get(f"/{view}/", params={"name": str(number)}))
                for number in range(REQUESTS)
            ]

            def all_arrived() -> bool:
                assert not any(request.done() for request in requests), site.program.log
                return len(list(tmp_path.glob("arrived-*"))) == REQUESTS

            await asyncio.to_thread(wait_until, all_arrived, "not all requests arrived")
            site.program.process.terminate()
            if server not in DROPPING:
                await asyncio.sleep(1)  # until the server has the signal; it must not drop a request, now or later
                assert site.program.runs, site.program.log
                (tmp_path / "released").touch()
            responses = await asyncio.gather(*requests, return_exceptions=True)
            (tmp_path / "released").touch()
        await asyncio.to_thread(wait_until, lambda: not site.program.runs, site.program.log)
        assert site.program.process.returncode in (0, -15), site.program.log
        if server in DROPPING:
            assert all(isinstance(response, httpx.TransportError) for response in responses)
            return
        for number, response in enumerate(responses):
            assert isinstance(response, httpx.Response), (response, site.program.log)
            assert {"variable": str(number), "local": str(number), "answer": 42} == response.json()


async def test_uwsgi_forks_just_after_a_call_of_asynchronous_code(tmp_path: Path) -> None:
    """By default, uWSGI runs no fork handlers of Python. A thread that the call leaves must not keep a worker."""
    logs: list[str] = []
    for _ in range(STARTS):
        if log := await _log_if_stuck(tmp_path):
            logs.append(log)
        # uWSGI sometimes misses a signal, with any application.
        assert len(logs) <= 1, "\n".join(logs)


async def _log_if_stuck(directory: Path) -> str | None:
    """Start uWSGI, ask once, and stop it; return its log if it does not answer or does not end."""
    port = free_port()
    command = "uwsgi --http-socket {host}:{port} --master --processes 1 --enable-threads --need-app --die-on-term"
    command += " --module called_at_import:application"
    with started(command.format(host=HOST, port=port), directory) as program:
        program.wait_for_port(port)
        async with httpx.AsyncClient(timeout=PATIENCE) as client:
            try:
                response = await client.get(f"http://{HOST}:{port}/")
            except httpx.ReadTimeout:
                return program.log
        assert response.text == "answered"
        program.process.terminate()
        try:
            await asyncio.to_thread(program.process.wait, PATIENCE)
        except subprocess.TimeoutExpired:
            return program.log
    return None
