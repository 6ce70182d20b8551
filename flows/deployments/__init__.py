"""The Prefect flows that `prefect.yaml` names, and `setup`, which makes what they need on a server."""
