"""Run configurations: data only, one ``get_config`` a file."""
