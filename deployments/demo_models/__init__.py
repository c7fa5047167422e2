"""Small models that are trained here, in a world of our own making, and shipped with the code."""
