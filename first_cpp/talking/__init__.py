"""The terminal chat: a conversation, a session that answers, a terminal that reads and shows."""
