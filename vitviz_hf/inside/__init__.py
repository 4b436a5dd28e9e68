"""What people ask about one picture: attention, similarity, components, norms, relevance, changes, the lens."""
