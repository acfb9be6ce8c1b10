"""Tasks of lm-eval, item by item, with models that are held already."""
