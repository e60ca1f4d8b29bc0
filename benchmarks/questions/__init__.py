"""One question a file; `benchmarks.cases.QUESTIONS` has their titles."""
