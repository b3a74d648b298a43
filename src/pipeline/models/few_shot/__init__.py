"""The few-shot methods: each module of this folder registers its own in MMAction2's MODELS.

All of them are imported with the folder, so a new method is a file here and needs no line elsewhere.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    if not _module.ispkg:
        import_module(f"{__name__}.{_module.name}")
