"""The history of a profile's tables, as Alembic runs it: numbered, only ever appended, never edited."""
