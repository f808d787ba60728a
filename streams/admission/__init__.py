"""What of the product's records becomes a case: rules, quotas, redaction, near duplicates, where to start."""
