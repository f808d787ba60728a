"""One file for each log shape: how a logger writes down a call, and how that becomes our canonical record.

A shape is a function (object, Context) -> Record, or -> items for envelopes; streams.reader knows in which order
they are tried. All raise RecordError, and nothing else, for what they cannot read.
"""
