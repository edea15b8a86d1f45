"""SQLAlchemy's synchronous sessions and streamed results in async code."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asgiref.sync import sync_to_async, sync_to_async_context_manager, sync_to_async_iterator

sqlalchemy: Any = pytest.importorskip("sqlalchemy")
orm: Any = pytest.importorskip("sqlalchemy.orm")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Any]:
    # SQLite refuses to use a connection on another thread. This pool keeps one connection per thread.
    engine = sqlalchemy.create_engine(
        f"sqlite:///{tmp_path / 'database'}", poolclass=sqlalchemy.pool.SingletonThreadPool
    )
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE numbers (number INTEGER)"))
    yield engine
    engine.dispose()


async def test_session_commits_and_rolls_back(engine: Any) -> None:
    sessions = orm.sessionmaker(engine)

    def insert(session: Any, number: int) -> None:
        session.execute(sqlalchemy.text("INSERT INTO numbers VALUES (:number)"), {"number": number})

    for number in range(4):
        with contextlib.suppress(KeyError):
            async with sync_to_async_context_manager(sessions.begin)() as session:
                await sync_to_async(insert)(session, number)
                if number % 2:
                    raise KeyError(number)

    def numbers() -> list[int]:
        with sessions() as session:
            return list(session.scalars(sqlalchemy.text("SELECT number FROM numbers ORDER BY number")))

    assert [0, 2] == await sync_to_async(numbers)()
    await sync_to_async(engine.dispose)()


@pytest.mark.parametrize("read_ahead", [0, 3])
async def test_streamed_result_that_is_left_half_way(engine: Any, read_ahead: int) -> None:
    closed: list[int] = []

    @sync_to_async_iterator(read_ahead=read_ahead)
    def numbers() -> Iterator[int]:
        with orm.Session(engine) as session:
            try:
                yield from session.scalars(
                    sqlalchemy.text("SELECT value FROM json_each('[1, 2, 3, 4, 5, 6, 7, 8, 9]')"),
                    execution_options={"yield_per": 2},
                )
            finally:
                closed.append(threading.get_ident())

    async with contextlib.aclosing(numbers()) as items:
        assert [1, 2] == [await anext(items), await anext(items)]
    assert [await sync_to_async(threading.get_ident)()] == closed
    # The connection of that thread is usable.
    assert list(range(1, 10)) == [number async for number in numbers()]
    await sync_to_async(engine.dispose)()
