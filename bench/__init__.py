"""Figures: each bench starts what it needs on this machine, prints its numbers, and cleans up.

Run one with `python -m bench.first`. Ratios are taken in one run, interleaved, because machines differ.
"""
