"""A typed Django project."""
