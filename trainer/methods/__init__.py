"""The methods benchmark: every method of the references on one base, prompts, judge and holdout.

`goldstream methods` runs it on the scribe task, `goldstream ablate` compares two recipes on the user's own gold.
Results as they came out: trainer/LOG.md.
"""
