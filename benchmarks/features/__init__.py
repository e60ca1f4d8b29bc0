"""The feature table of README.md: `python -m benchmarks.features`."""
