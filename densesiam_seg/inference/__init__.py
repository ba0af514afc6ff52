"""A trained model → masks: the public object `Segmenter`, and its uses.

Imports `network`, `clustering`, `pictures`, `views`, `images` and `io`. Exports `segmenter`, its files (`model_card`),
scores at an image's size (`upsampling`), how sure they are (`confidence`), read-outs (`readout`, `centroids`) and their
choice without labels (`selection`, `suggesting`), test-time `options` and `refinement`, pictures of clusters
(`visualize`), and what masks are made by, as digests (`identity`).
"""
