"""Celery entry points, for those who start workers with Celery's own command. `agentmesh worker` does the same."""
