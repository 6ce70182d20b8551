"""`shapes`: the embedded model's world: procedural scenes, the truth at every resolution, and its metrics."""
