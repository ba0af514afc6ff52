"""Masks, sheets of pictures and charts as files.

Imports `io`. `masks`: palettes, mask PNGs and overlays; `sheet`: rows of pictures with a legend; `charts`: dot charts.
"""
