"""Programs that pages of the documentation show, and what they print."""
