"""What the figures in README.md and docs come from; each module says its command."""
