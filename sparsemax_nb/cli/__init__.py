"""The command line interface ``sparsemax-nb``: one file per group of commands."""
