"""Recorded data that chapters read, and in `make` the commands that made it."""
