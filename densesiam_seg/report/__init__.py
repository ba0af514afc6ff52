"""A model and images → pages and lists for people: what was found, how sure it is, where two models differ.

Imports `evaluation`, `prediction` and what lies below them.
"""
