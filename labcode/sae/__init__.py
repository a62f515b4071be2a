"""Sparse autoencoders on the residual stream: corpus, activations, training with sae-lens, evaluation, latents, edits.

`corpus` gives the text, `activations` the residual vectors, `train` the autoencoder, `evaluate` its quality, `files`
its place on disk, `shipped` the one of the book; `latents` says where its latents fire, `edits` changes them in a run.

Used in chapters 13 to 16.
"""
