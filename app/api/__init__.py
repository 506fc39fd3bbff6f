"""REST under /v1: one file per resource; parse, call a verb, shape the answer."""
