"""What this machine is and how fast it runs a network."""
