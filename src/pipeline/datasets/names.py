"""Names of classes as different people write them: draw_sword, Draw Sword and DrawSword are one class."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.errors import UserError


def normal(name: str) -> str:
    """What two spellings of a name share: its letters and digits, in small letters.

    Case, blanks, underscores, hyphens, brackets and other marks don't count: "Putting [something] next to [something]",
    "putting something next to something".
    """
    return "".join(letter for letter in name.casefold() if letter.isalnum())


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


__all__ = ["match_name", "match_names", "normal", "told"]
