"""Pure numpy: differences, ratios and their intervals."""
