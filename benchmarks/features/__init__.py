"""The table of docs/features.md: `python -m benchmarks.features`."""
