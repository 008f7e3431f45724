"""The latent-distribution-matching framework: latent models, entropy estimators and the objective that joins them."""
