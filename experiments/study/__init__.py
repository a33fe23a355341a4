"""What the geometry says: a study, as data, a runner and its report."""
