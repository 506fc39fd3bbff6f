"""The pure middle of tightfit: frozen values and functions, standard library only."""
