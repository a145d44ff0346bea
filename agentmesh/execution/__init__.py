"""What to do: plans, the pure `advance`, tools, executors and callbacks.

Executors run the steps of a trace they hold; deciding what comes next touches nothing (plan, advance, slots).
"""
