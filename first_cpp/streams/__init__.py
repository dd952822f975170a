"""Many prompts answered in one context, several at a time: the weights are read once for all of them."""

MOST_POSITIONS = 8192
"""Of all streams together: their KV cache takes memory."""
ROOM = 256
"""llama.cpp rounds the context of each stream up to a multiple of this."""
MOST_STREAMS = MOST_POSITIONS // ROOM
"""Of the shortest prompts and answers; longer ones have fewer."""
ONE_STREAM = frozenset({"chameleon", "minimax-01", "t5", "t5encoder"})
"""Architectures of which only one answer is decoded at a time: of several, llama.cpp ends the process for MiniMax-01, for T5
before it could be refused, and hides image tokens in Chameleon's first alone."""
ONLY_TOKENS = frozenset({"graniteswitch"})
"""Architectures that cannot start from hidden states: llama.cpp would end the process."""
