"""A classifier held near the uniform distribution: the smallest application, copied by new_app."""
