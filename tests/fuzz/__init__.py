"""Fuzzing: seeded and bounded commands that feed the package bad, odd and damaged input in child processes."""
