"""Alembic's folder: env.py is run by Alembic, versions/ holds one change of the tables a file."""
