"""The commands of `goldstream` that drive the trainer; goldstream.py composes them.

Every import of ours but schemas.commandline happens inside a command, so that `goldstream --help` answers at once.
"""
