from asgiref.sync import ThreadSensitiveEventLoop as Loop

pytest_asyncio_loop_factories = lambda config, item: {"django": Loop}  # noqa: E731
