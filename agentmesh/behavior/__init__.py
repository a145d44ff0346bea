"""What to want: intents, agents, reasoners and the rules they decide by. Values in, values out.

Nothing here knows a row, a queue or a clock; whoever runs it commits what it returns.
"""
