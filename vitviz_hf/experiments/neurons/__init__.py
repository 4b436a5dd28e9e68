"""Views, occlusion and grouping of patch tokens."""
