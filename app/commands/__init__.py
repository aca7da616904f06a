"""The commands, a file each: `python -m app NAME` imports that file only, and `_` is a space.

SECTION             what a person wants to do, for `./run.sh help`; a command without is internal
FLAGS               the command's flags (absl's FlagValues), shared groups among them
run(FLAGS)          does it in this process; returns an exit code, or None for success
select(FLAGS, np)   if it has ranks: checks the flags; then the command runs on NP processes
launch(FLAGS, ...)  if that takes more: checks the flags and runs the command on NP processes

A new file here is a new command; without a file, all others work as before.
"""
