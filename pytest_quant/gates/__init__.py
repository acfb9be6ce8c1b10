"""Pure decisions: measurement and limit give a verdict. Knows neither torch nor pytest."""
