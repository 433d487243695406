"""The batch coalescer. Empty until the work on it begins; the package reserves the name."""
