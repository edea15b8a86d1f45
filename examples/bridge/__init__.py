"""A Flask app and an ASGI app that call each other through the bridge, behind a real uvicorn."""
