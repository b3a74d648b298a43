"""Questions on videos: frozen visual features, a Q-Former and a causal language model (SeFAR, Table 5)."""

from pipeline.models.questions.model import QuestionModel

__all__ = ["QuestionModel"]
