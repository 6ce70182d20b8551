"""A night: many jobs, one after another, each done, set aside with its reason, or left for the next night."""
