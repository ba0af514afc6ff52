"""Backbone, decoder and heads: what is trained.

Imports `clustering` (the mixture is part of a network), `views` and `io`. Exports timm's models (`timm_backbones`),
backbone + decoder (`encoder`), and the network with its heads (`model`).
"""
