"""The plan of a model on a device: what each format would take at best, and which to choose."""
