"""A Hub id becomes a measured view."""
