"""What `first-cpp bench` measures with."""
