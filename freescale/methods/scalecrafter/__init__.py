"""ScaleCrafter (arXiv:2310.07702): the method, its convolutions, its released settings."""
