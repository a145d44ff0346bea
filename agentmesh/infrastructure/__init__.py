"""What everything stands on: settings, the database connection, the embedded server, strict JSON and YAML, logging.

Knows no trace, agent or tool; nothing here imports a room above it.
"""
