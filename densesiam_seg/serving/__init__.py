"""The local page on which clusters are looked at, named and merged.

Imports `report`, `prediction` and what lies below them. Needs the extra `ui`.
"""
