"""A model, or its masks, in the formats of other programs.

Imports `prediction` and what lies below it.
"""
