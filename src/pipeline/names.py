"""Names as different people and systems write them.

Of classes: draw_sword, Draw Sword and DrawSword are one (`match_names`). Of files: a list names a video by another
case, suffix, folder, time range or normal form than the file that is there has (`Names`).
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from pipeline.errors import UserError


def normal(name: str) -> str:
    """What two spellings of a name share: its letters and digits, in small letters.

    Case, blanks, underscores, hyphens, brackets and other marks don't count: "Putting [something] next to [something]",
    "putting something next to something".
    """
    return "".join(letter for letter in composed(name).casefold() if letter.isalnum())


def match_names(wanted: Iterable[str], known: Iterable[str], where: str = "the names") -> dict[str, str | None]:
    """Which of the names `known` each of `wanted` means: the same one, else the one whose `normal` form is the same.

    None where there is none. Raises UserError where two of `known`, spelt apart, could be meant; `where` says in what.
    """
    known = list(dict.fromkeys(known))
    exact, by_form = set(known), {}
    for name in known:
        by_form.setdefault(normal(name), []).append(name)
    found: dict[str, str | None] = {}
    for name in dict.fromkeys(wanted):
        alike = [name] if name in exact else by_form.get(normal(name), [])
        if len(alike) > 1:
            raise UserError(
                f"{where}: {name!r} may be {' or '.join(map(repr, alike))}; name one of them as it is written"
            )
        found[name] = alike[0] if alike else None
    return found


def match_name(wanted: str, known: Iterable[str], where: str = "the names") -> str | None:
    """`match_names` of one name."""
    return match_names([wanted], known, where)[wanted]


def told(matched: dict[str, str | None], what: str) -> list[str]:
    """Lines that show names which are spelt apart; `what` stands between the two ("has the texts of")."""
    return [f"{name!r} {what} {other!r}" for name, other in matched.items() if other not in (None, name)]


# ------------------------------------------------------------------------------------------ names of files
Key = Callable[[str], str]
TIME_RANGE = re.compile(r"_\d{6}_\d{6}$")  # Kinetics: seconds of the clip in its video


def composed(name: str) -> str:
    """The name with composed letters (NFC), as lists mostly have it; file systems of a Mac decompose them."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """The name without case, composed, with / between folders."""
    return composed(composed(name.replace("\\", "/")).removeprefix("./").casefold())


class Names:
    """Finds a name among those that are there by ever looser keys; the first key that fits anything decides.

    Args:
        there: names that are there.
        keys: {in what a name differs that is found by this key: the key}, the strictest first.
    """

    def __init__(self, there: Iterable[str], keys: Mapping[str, Key]) -> None:
        self.there, self.keys = list(there), keys
        self._exact = set(self.there)
        self._by_key: dict[str, dict[str, list[str]]] = {}

    def candidates(self, name: str) -> tuple[list[str], str]:
        """All names that the strictest fitting key finds, and in what they differ."""
        if name in self._exact:
            return [name], ""
        for how, key in self.keys.items():
            if how not in self._by_key:
                table = self._by_key[how] = {}
                for one in self.there:
                    table.setdefault(key(one), []).append(one)
            if found := self._by_key[how].get(key(name)):
                return found, how
        return [], ""

    @cached_property
    def _sorted(self) -> list[tuple[str, str]]:
        return sorted((folded(name), name) for name in self.there)

    def nearest(self, name: str, taken: Collection[str] = ()) -> str:
        """The name, none of `taken`, that looks most like `name` among its neighbours in the alphabet; "" for none."""
        at = bisect_left(self._sorted, (folded(name), ""))
        near = {key: one for key, one in self._sorted[max(at - 3, 0) : at + 3] if one not in taken}
        best = difflib.get_close_matches(folded(name), near, n=1, cutoff=0.6)
        return near[best[0]] if best else ""


def near_path(path: str | Path) -> str:
    """For the message on a path that is not there: "; the nearest that is there is ..." or ""."""
    wanted = Path(str(path) if "/" in str(path) else str(path).replace("\\", "/")).expanduser()
    if wanted.exists():
        return f"; {wanted} is there"
    above = next((folder for folder in wanted.parents if folder.is_dir()), None)
    if above is None:
        return ""
    name = wanted.relative_to(above).parts[0]
    try:
        near = {folded(entry): entry for entry in os.listdir(above)}
    except OSError:
        return ""
    best = [folded(name)] if folded(name) in near else difflib.get_close_matches(folded(name), near, n=1, cutoff=0.6)
    return f"; the nearest that is there is {above / near[best[0]]}" if best else ""


def ambiguous(kind: str, name: str, found: Sequence[str], where: str) -> UserError:
    """Error for a name that several fit."""
    more = f" and {len(found) - 2} more" if len(found) > 2 else ""
    return UserError(f"{where}: the {kind} {name!r} may be {found[0]!r} or {found[1]!r}{more}; write which one")


__all__ = [
    "TIME_RANGE",
    "Names",
    "ambiguous",
    "composed",
    "folded",
    "match_name",
    "match_names",
    "near_path",
    "normal",
    "told",
]
