"""Features of pixels → clusters. The only room that imports FAISS.

Imports `io`. Exports k-means (`kmeans`), merging of over-clusters (`merging`), pairing and mutual information of two
clusterings (`agreement`), and the mixture of Gaussians over appearance (`appearance` → `gaussians` → `mixture`).
"""
