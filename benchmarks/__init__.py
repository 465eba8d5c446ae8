"""Benchmarks: ratios against named rivals, measured in one run. ``python -m benchmarks.fields --help``."""
