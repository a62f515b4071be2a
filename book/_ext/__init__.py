"""The Sphinx side of the book: figures, maths, execution and the ledger. Nothing in here imports torch."""
