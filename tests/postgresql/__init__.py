"""A Django site with PostgreSQL under load: does it stay within the connections that it may have?"""
