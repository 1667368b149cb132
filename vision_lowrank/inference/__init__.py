"""Using saved models on any files: inputs, a row for each, the journal that keeps rows, and the tables of them."""
