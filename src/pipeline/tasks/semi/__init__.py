"""Semi-supervised recognition of videos (SeFAR and its baselines)."""
