"""What executes a model: load, score windows, generate, account for memory."""
