"""The commands that made the recorded data: `python -m labbook.data.make.NAME`."""
