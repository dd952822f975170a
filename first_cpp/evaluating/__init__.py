"""What `first-cpp eval` does: rows answer, metrics score, bootstrap says how sure, a report tells."""
