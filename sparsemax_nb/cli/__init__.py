"""The command line: ``sparsemax-nb``, one file for each group of commands."""
