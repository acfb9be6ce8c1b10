"""What each format is, which backend realizes it, how it proves itself."""
