"""The gold set in the formats that other trainers read: `goldstream gold export`."""
