"""What a run has measured, kept at once: a run that was killed goes on where it was."""
