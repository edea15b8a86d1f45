"""A Django site with views of each kind."""
