"""What stands around a training or a test: data, weights, schedules."""
