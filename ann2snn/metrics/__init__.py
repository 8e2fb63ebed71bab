"""Scores of image sets: features, Frechet distance, Inception Score, and the files that hold reference statistics.

`score.score_numbered` is the way in; the other modules hold one duty each and can be used alone.
"""
