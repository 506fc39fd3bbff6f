"""The published methods as stages of a search: one file each, trained or fitted after the search has allocated."""
