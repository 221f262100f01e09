"""The `timemoe` command, and what the programs have in common."""
