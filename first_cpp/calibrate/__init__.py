"""`first-cpp calibrate`: routers for any model, found by llama.cpp on the user's own machine."""
