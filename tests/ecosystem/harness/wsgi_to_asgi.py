"""A pytest plugin that replaces the WSGI middleware of Starlette and uvicorn by ``WsgiToAsgi``."""

import importlib

from asgiref.wsgi import WsgiToAsgi

for name, attribute in [
    ("starlette.middleware.wsgi", "WSGIMiddleware"),
    ("uvicorn.middleware.wsgi", "_WSGIMiddleware"),
]:
    try:
        module = importlib.import_module(name)
    except ImportError:
        continue
    getattr(module, attribute)
    setattr(module, attribute, WsgiToAsgi)
