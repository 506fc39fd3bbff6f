"""Schema revisions of our own tables."""
