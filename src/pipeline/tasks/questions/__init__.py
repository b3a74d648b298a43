"""Questions on videos, answered from the frozen features of another run (SeFAR, Table 5)."""
