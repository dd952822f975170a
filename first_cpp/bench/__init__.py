"""`first-cpp bench`: speed, the limit and memory on this machine."""
