"""Erasure: who is forgotten, told to every process by gs.forgotten, and what that does to rows, cases and texts."""
