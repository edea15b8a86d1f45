"""A Django site with PostgreSQL under load must not need more connections than it may have."""
