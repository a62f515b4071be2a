"""The errors of sparse autoencoders and of their text."""

from labcode.errors import SaeError

__all__ = ["CorpusError", "SaeError"]

CorpusError = SaeError
