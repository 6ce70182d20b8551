"""FouriScale (arXiv:2403.12963): the method, its filtered convolutions, its base sizes."""
