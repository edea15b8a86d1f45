"""A Celery worker of each pool, whose tasks call an asynchronous Redis client."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from driving import LIMIT, started
from driving import redis_url as redis_url  # a fixture

TASKS = 40
POOLS = ["solo", "threads", "prefork"]


@pytest.fixture(scope="module", params=POOLS)
def tasks(request: pytest.FixtureRequest, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The tasks, with a worker of one kind; it must end by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDIS_URL", redis_url)
        patch.setenv("CELERY_POOL", request.param)
        # Celery refuses to run as root without this.
        patch.setenv("C_FORCE_ROOT", "1")
        sys.modules.pop("celery_tasks", None)
        import celery_tasks

        command = f"celery --app celery_tasks worker --pool {request.param} --concurrency 4 --loglevel INFO"
        with started(command, tmp_path_factory.mktemp(request.param)) as worker:
            worker.wait_for_log("ready.")
            yield celery_tasks
            assert 0 == worker.stop(), worker.log


@pytest.mark.parametrize("task", ["visit", "visit_three_times"])
def test_asynchronous_client(tasks: Any, task: str) -> None:
    users = [f"{tasks.POOL} {task} {number}" for number in range(TASKS)]
    results = [getattr(tasks, task).delay(user) for user in users]
    for result in results:
        assert {"numbers": [1, 2, 3], "on the task's thread": True} == result.get(timeout=LIMIT)


def test_exception_of_a_coroutine(tasks: Any) -> None:
    with pytest.raises(LookupError, match="in a coroutine"):
        tasks.fails.delay().get(timeout=LIMIT)
