"""A run, or several of one day, as one HTML file that needs nothing else (docs/report.md)."""
