"""Apps that the tests run in real workers. Steps note their execution through `tests.harness.note`."""
