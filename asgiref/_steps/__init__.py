"""Across the bridge step by step: iterators and context managers, which last longer than a call.

Each step is a ``sync_to_async`` call, with all that this promises. The modules here add that all steps of one
iteration, or of one ``with`` block, run on one thread and in one context, and that what was begun is ended there.
They come with the first use of a function that they give to ``asgiref.sync``.
"""
