"""Bridges between synchronous and asynchronous Python; see ``asgiref.sync``."""

__version__ = "3.14.0"
