"""Modules with parameters: encoders, dynamics, the latent filter that joins them, and read-outs."""
