"""How the mesh talks: envelopes and keys, the Celery app and its queues, doorbells, the join.

The only room that knows Celery and kombu. A message carries ids and, the first time, a signed
envelope; no fact lives here.
"""
