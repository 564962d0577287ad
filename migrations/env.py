"""Alembic's entry: runs the migrations on the connection that ``migrations.upgrade`` opened."""

from alembic import context

from store.schema import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
