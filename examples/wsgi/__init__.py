"""A Flask app behind ``WsgiToAsgi``: an upload that is read as it comes, and a response that streams."""
