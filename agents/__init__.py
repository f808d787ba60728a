"""What to do with one case: student, judge, refiner, strategist, and access to the models.

Async functions of (case, models); nothing here knows Kafka. streams runs them, the trainer's gate
uses the judge.
"""
