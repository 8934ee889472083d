"""The product with one rule taken out, and the test that must then fail: `make test-mutants`."""
