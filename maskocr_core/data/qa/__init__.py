"""What makes a line, a shard or a source bad: the measures and the findings behind `validate`."""
