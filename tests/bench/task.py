"""The task of the rows that run our factory with a verifier for a judge, and the prompt that the product logs.

All that is logged trains, from the first record on.
"""

from __future__ import annotations

TEXT = "The patient reports a cough and takes 500 mg of metformin daily. " * 16  # about 1 KB
TASK = """
[intake]
start_at = "earliest"
holdout_share = 0.0
[tasks.bench]
topics = ["bench"]
[tasks.bench.rubric]
verifier = "{verifier}"
rules = [{{ id = "please", text = "It says please." }}]
"""
