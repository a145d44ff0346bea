"""What happened: reads for people, over rows that others write.

Nothing here changes a row, knows a queue or decides anything. Every statement names its tenant.
"""
