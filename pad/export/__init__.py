"""A detector as one graph for other runtimes: pixels in, verdicts out."""
