"""One-shot recognition of skeletons (CrossGLG and its baselines)."""
