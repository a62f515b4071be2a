"""What can be wrong with a corpus, with activations, or with a sparse autoencoder."""

from __future__ import annotations

from labcode.errors import LabError


class SaeError(LabError):
    """A sparse autoencoder, or what it is trained or used on, that does not fit; the message says how to mend it."""


class CorpusError(SaeError):
    """A corpus that is missing, altered, too small, or of another tokenizer."""
