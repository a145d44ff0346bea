"""The demo: two agents that work real customers' messages, and the report a team lead reads.

Everything here is ordinary user code on the public interface: tools, a reasoner, a callback
handler, plain SQL in a schema of its own (`demo`). The engine knows nothing of it, and nothing here
starts a process or opens a connection.
"""
