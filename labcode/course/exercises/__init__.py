"""What is right in the exercises of each chapter, and which mistakes are known: one module for each chapter."""
