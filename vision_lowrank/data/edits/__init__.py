"""A seeded generator of edited photographs: kinds of edit, a file per family, and what writes a data set of them."""
