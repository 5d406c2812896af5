"""Is a source of the target's kind? Features, yardsticks, verdicts and weights behind `fit`."""
