"""Reports: one HTML file that needs nothing else, for a run, a pair of tokenizers or an aligned text.

`page` and `charts` know HTML and no figure; `run` gathers figures and knows no HTML; the others put the two together.
"""
