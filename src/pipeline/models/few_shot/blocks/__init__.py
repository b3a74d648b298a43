"""Parts that several few-shot methods are built from."""
