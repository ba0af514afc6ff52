"""Losses, and the objectives that weigh them. `densesiam` is the method; begin there.

Imports `network`, `clustering`, `views`, `images` and `io`. Exports what the training loop asks of a method
(`method`), DenseSiam (`densesiam`), its pre-training (`pretraining`) and the baselines PiCIE and MDC (`picie`).
"""
