"""Images → a model: step, epoch, run. `train` and `pretrain` are the use cases, both in `train.py`.

Imports `methods`, `inference` and below. A run is made ready by `setup`, trained by `loop` and saved by `checkpoint`;
`recipes` has what the two kinds of run do differently, `weights` the initial weights, `snapshot` the model.
"""
