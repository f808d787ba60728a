"""What no single process can tell: lag and age, the gold set in numbers, who trains and who serves.

`goldstream exporter` runs streams.exporter.service; the families are in streams.exporter.families.
"""
