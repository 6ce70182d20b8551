"""When, where, retries: the command line (`cli`) and the Prefect flows (`render`), both over `session`.

Nothing is imported here: the command line must not pay for Prefect, and a worker imports the flow it runs.
"""
