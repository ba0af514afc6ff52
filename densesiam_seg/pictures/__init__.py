"""Masks, sheets of pictures and charts as files.

Imports `io`. Exports palettes, mask PNGs and overlays (`masks`), rows of pictures (`sheet`) and dot charts (`charts`).
"""
