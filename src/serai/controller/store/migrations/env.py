"""What Alembic runs: the connection is given by `database.migrate`, which owns the transaction."""

from alembic import context

from serai.controller.store.tables import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise RuntimeError("migrations are run by the controller when it starts, on its own connection")
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
context.run_migrations()
