"""The doors over HTTP: they let envelopes, intents, readers and orders in, and decide nothing.

Everything behind them is what Python and the command line use as well. Endpoints are plain functions that run in
threads: no statement is ever awaited on the event loop.
"""
