"""`first-cpp eval`: the quality that skipping keeps."""
