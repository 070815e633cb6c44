"""Measured promises: `make bench` runs them all; docs/performance.md explains each."""
