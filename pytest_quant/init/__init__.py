"""``pytest-quant init``: a first test file of a model, with limits measured on the spot."""
