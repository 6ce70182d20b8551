"""The VAE by exact tiles: its layers, one tile, the plan of what is kept, and the passes over a picture."""
