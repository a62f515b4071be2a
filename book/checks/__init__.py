"""The checks of readers' answers."""
