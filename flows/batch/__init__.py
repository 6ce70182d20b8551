"""A batch of jobs, one after another: each is done, set aside with the reason, or left for the next batch."""
