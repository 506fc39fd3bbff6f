"""Reading networks into one canonical form, finding channel groups, slicing and writing them back."""
