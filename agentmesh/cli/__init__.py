"""The command line: one module a group of verbs, each verb one call into the package.

stdout is data, stderr is talk. Nothing here decides anything or knows a row; heavy imports stay inside verbs.
"""
