"""Other people's servers and tools, each known to one module here."""
