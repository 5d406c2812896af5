"""Lines: their schema, images, quality and fit, and the way they come into training."""
