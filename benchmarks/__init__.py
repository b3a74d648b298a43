"""How fast it is: every line compares two ways of doing the same in one run (`python -m benchmarks`)."""
