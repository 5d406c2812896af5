"""Erasing what tombstones name: from artifacts, unfinished work, stores, versions of the data and MLflow."""
