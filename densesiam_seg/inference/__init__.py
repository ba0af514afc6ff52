"""A trained model → masks: the public object `Segmenter`, and what is done with it.

Imports `network`, `clustering`, `pictures`, `views`, `images` and `io`. Exports `segmenter`, its files (`model_card`),
`predict` for folders, read-outs by k-means and merging (`readout`) and their choice without labels (`selection`),
options at test time (`options`), pictures of clusters (`visualize`) and weights for other programs (`export`).
"""
