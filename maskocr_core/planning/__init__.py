"""What a pre-training run will take, computed before it starts: formulas over a recipe, nothing measured on a GPU."""
