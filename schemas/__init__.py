"""Every shape that crosses a process boundary, and how to read it.

Nothing here imports the other packages: streams, agents and trainer meet on
these shapes, on topics and on files.
"""
