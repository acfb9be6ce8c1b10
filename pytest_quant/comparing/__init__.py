"""Two sets of measurements side by side: baselines, runs, or one of each."""
