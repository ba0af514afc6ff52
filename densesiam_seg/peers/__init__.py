"""Several processes that work as one, on one machine or on many.

Imports `io`. Exports a process's part of a list (`shard`), what the processes of a group add up, share and agree on
(`group`), and sums that do not depend on who adds them (`exact`).
"""
