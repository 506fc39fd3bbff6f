"""The published methods as stages of a search: one file each, trained or fitted after the search has allocated."""

STATE, NETWORK = "state.safetensors", "network.tightfit"
"""What a stage's folder holds: its state between epochs, and behind the last one the network."""
