from asgiref.sync import ThreadSensitiveEventLoop

pytest_asyncio_loop_factories = lambda config, item: {"django": ThreadSensitiveEventLoop}  # noqa: E731
