"""The images that activate each feature most, and their pages."""
