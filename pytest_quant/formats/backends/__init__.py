"""One module for each library that realizes formats."""
