"""Benchmarks: what ours costs beside what a user would pick instead, measured side by side in one run.

`make bench` runs the table of rows (bench.table); the other modules with a `main` are benchmarks of their own.
"""
