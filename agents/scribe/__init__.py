"""The demo task: a synthetic clinical scribe that turns a short transcript into a note of three lines.

transcripts.py makes and reads the prompts, rules.py is the judge, scripted.py stands in for
refiner and strategist, pretrain.py makes the student whose weights lie in student/.
"""
