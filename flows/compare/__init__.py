"""Methods side by side: which pictures a comparison is made of, its page, and a blind study over it."""
