"""Request formats."""
