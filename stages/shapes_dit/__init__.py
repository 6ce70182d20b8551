"""`shapes-dit`, the embedded transformer: the world of `shapes` at 256x256, in the format of FLUX.1."""
