"""Benchmarks: each checks that both sides computed the same thing, then times them in turns in one process."""
