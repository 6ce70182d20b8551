"""The stages of a causal VAE of videos, whose latent frames but the first are several frames each."""
