"""The search: sensitivities, allocation under all limits at once, sampling, and the loop that ties them together."""
