"""The commands of `atp-export`: one module each, whose `run(options)` returns the exit code."""
