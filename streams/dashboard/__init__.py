"""`goldstream dashboard`: one page that shows where cases are stuck, what gold there is and who serves.

state.py and answers.py have the shape of all the page is told; server.py answers it; poller.py reads Kafka, the gold
set and the files of trainer and rollout; the page itself stands in page/.
"""
