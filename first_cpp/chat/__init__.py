"""`first-cpp chat`: a conversation in the terminal."""
