"""Where arrays lie and which process does what: layouts, meshes, many processes."""
