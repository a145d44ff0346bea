"""How word travels: envelopes, the broker, doorbells, and the entrance of an agent. Celery and kombu only here.

A message says "look at this row" and is believed in nothing else; what is true stands in state/.
"""
