"""Backbone, decoder and heads: what is trained.

Imports `clustering` (the mixture is part of a network), `views` and `io`. Exports what fixes a network (`architecture`,
which needs no torch), the families of backbones that are written down (`resnet`, `efficientnet`), timm's models
(`timm_backbones`), backbone + decoder (`encoder`), the network with its heads (`model`), and how it is made without
memory (`weightless`).
"""
