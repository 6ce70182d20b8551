"""The workers of a Dask cluster: jobs of a batch on them, and the tiles, frames and exports of one render."""
