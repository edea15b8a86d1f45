"""A site with one model."""
