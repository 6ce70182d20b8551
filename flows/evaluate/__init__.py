"""Methods measured: which pictures an evaluation is made of, what is read of each, and the report."""
