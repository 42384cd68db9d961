"""Alembic's entry: runs the revisions on the connection, and in the transaction, that `database.py` hands over."""

from alembic import context
from sqlalchemy import Connection

_connection = context.config.attributes.get("connection")
if not isinstance(_connection, Connection):
    # Else the lock and the timeouts that database.py sets would be missing.
    raise RuntimeError("Migrations are run by `python -m migrations`, not by the alembic command.")
context.configure(connection=_connection)
with context.begin_transaction():
    context.run_migrations()
