"""A bot for IRC that keeps notes, on ``StatelessServer``: ``python -m examples.chatbot`` and ``nc``."""
