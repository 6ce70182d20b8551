"""The VAE by exact tiles: its layers, one tile, and the passes over a picture."""
