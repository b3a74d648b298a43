"""Few-shot recognition of videos in episodes (LGA, Task-Adapter++ and their baselines)."""
