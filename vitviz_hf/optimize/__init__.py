"""Pictures that maximize objectives."""
