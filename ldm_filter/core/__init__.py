"""Exact inference in linear-Gaussian state-space models: pure, batched, differentiable functions on tensors."""
