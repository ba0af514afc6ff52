"""Losses, and the objectives that weigh them. `densesiam` is the method; begin there.

Imports `network`, `clustering`, `views`, `images` and `io`. Exports the interface to the training loop (`method`),
DenseSiam (`densesiam`; `losses`, `fused_losses`) with its `mixture_prior` and the `stage_cache` of a frozen backbone,
pre-training (`pretraining`; `correspondence`, `sampling`) and the baselines PiCIE and MDC (`picie`).
"""
