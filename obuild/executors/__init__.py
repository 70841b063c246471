"""Where steps run. `protocol` says what an executor is, and `all` has the table of them."""
