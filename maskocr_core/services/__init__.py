"""Other people's servers and tools, each known to one module here (MLflow to two: runs, and models)."""
