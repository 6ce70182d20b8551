"""One render from a checked spec to files a person can open, for the command line and for Prefect."""
