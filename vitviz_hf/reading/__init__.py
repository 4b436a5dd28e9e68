"""What a model does on a picture."""
