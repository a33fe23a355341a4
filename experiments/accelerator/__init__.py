"""What an accelerator says of this project in a few minutes: `python -m experiments.accelerator`, see `driver`."""
