"""Several processes that work as one, on one machine or on many.

Imports `io`. Exports a process's part of a list (`shard`), what the processes of a group add up, share and agree on
(`group`), results and errors as they are sent (`outcome`), sums that do not depend on who adds them (`exact`), and what
made the masks of a folder, on which processes agree that know nothing of each other (`record`).
"""
