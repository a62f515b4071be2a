"""What only one chapter draws."""
