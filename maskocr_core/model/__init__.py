"""Pure torch: what is computed. No files, no services.

Shape suffixes: B batch, H height in px, W width in px, L steps (W / 8), D model width, F features, K clusters, V classes.
"""
