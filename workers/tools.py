"""`celery -A workers.tools worker`: a worker for tools, as the settings say.

Nothing connects before a worker boots; pool and concurrency are Celery's options, else those of the settings.
"""

from agentmesh.wiring import build

mesh = build()
app = mesh.worker_app("tools")
