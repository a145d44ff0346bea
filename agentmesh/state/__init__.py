"""What is true: tables, and every transition that changes a row, split by the row it guards.

A change is one guarded UPDATE that returns whether it won; losing is a value. Lock order: trace → calls (by id) →
step → context. No messages are sent from here.
"""
