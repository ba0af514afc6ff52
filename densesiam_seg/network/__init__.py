"""Backbone, decoder and heads: what is trained.

Imports `clustering` (the mixture is part of a network), `views` and `io`. Exports what fixes a network (`architecture`,
which needs no torch), timm's models (`timm_backbones`), backbone + decoder (`encoder`), and the network with its heads
(`model`).
"""
