"""The command line: one file per command, each options → one library call → one rendering.

Only `console` knows Rich, and nothing heavy is imported before a command runs.
"""
