"""Pretrained models on disk: what a folder says of itself, loading it, and converting VideoCrafter2."""
