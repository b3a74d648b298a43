"""Texts of classes: who writes them, where they are kept, how they become vectors."""

DEBERTA = "microsoft/deberta-v2-xlarge"  # the text encoder of CrossGLG
