"""HiDiffusion (arXiv:2311.17528): the method, its UNet and its attention."""
