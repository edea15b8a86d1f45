"""A Flask app behind ``WsgiToAsgi``: a streamed upload and a streamed response."""
