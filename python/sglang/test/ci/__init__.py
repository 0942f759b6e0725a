"""How test files name the CI suites they belong to."""
