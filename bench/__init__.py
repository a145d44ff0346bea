"""Figures: each bench starts what it needs on this machine, prints its numbers, and cleans up.

`python -m bench --help` lists them; `python -m bench.first` stands beside bare Celery. Ratios are taken in one run,
interleaved, because machines differ.
"""
