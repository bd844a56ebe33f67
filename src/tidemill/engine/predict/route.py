"""Routes: which version of a model answers a question, as a pure function of the route and the question's key.

A key's place in [0, 1) hangs on the key and the route's id alone. The arms of a route take stretches of that line, one
after the other from 0; what is left is the champion's. So a key stays with its version while the route stands, and an
arm that is given a larger share keeps the keys it had.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill.base.errors import TidemillError
from tidemill.base.hashing import bucket, canonical, fingerprint

CHAMPION = "champion"
CANARY = "canary"
#: The route of predictions that were mirrored, and never an answer.
SHADOW = "shadow"
#: The route of answers by a version that the caller named.
PINNED = "pinned"

_MIRRORED = re.compile(r"/v\d+(?=(?::\d+)?$)")
_RESERVED = (CHAMPION, SHADOW, PINNED)


@dataclass(frozen=True, slots=True)
class Arm:
    """A version that answers a share (0 to 1) of the keys. ``name`` is the route that its answers state."""

    name: str
    version: int
    share: float


@dataclass(frozen=True, slots=True)
class Route:
    """How the questions to one model are shared out.

    ``shadows``: versions that every question is mirrored to. ``paired``: what an arm answers is mirrored to the
    champion, so that both can be compared on the same questions. ``until``: the tick from which an automatic canary may
    be promoted; None for a route set by hand.
    """

    id: str = ""
    arms: tuple[Arm, ...] = ()
    shadows: tuple[int, ...] = ()
    paired: bool = False
    until: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data for the journal."""
        return {
            "id": self.id,
            "arms": [{"name": arm.name, "version": arm.version, "share": arm.share} for arm in self.arms],
            "shadows": list(self.shadows),
            "paired": self.paired,
            "until": self.until,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Route:
        """Return the route that ``as_json`` wrote."""
        arms = tuple(Arm(arm["name"], arm["version"], arm["share"]) for arm in data["arms"])
        return Route(data["id"], arms, tuple(data["shadows"]), data["paired"], data["until"])

    @property
    def versions(self) -> tuple[int, ...]:
        """Every version that it names, once each."""
        return tuple(dict.fromkeys([*(arm.version for arm in self.arms), *self.shadows]))

    def __str__(self) -> str:
        parts = [f"{arm.name} v{arm.version} {arm.share:.4g}" for arm in self.arms]
        parts += [f"shadow v{version}" for version in self.shadows]
        return ", ".join(parts) or "champion only"


#: Everything to the champion.
PLAIN = Route()


def route(
    model: str,
    arms: Iterable[Arm] = (),
    shadows: Iterable[int] = (),
    *,
    paired: bool = False,
    until: int | None = None,
) -> Route:
    """Return a route of ``model``. Its id hangs on the arms' names and versions, so that shares change in place.

    Raises TidemillError when a name is none or taken twice, a share is not above 0, or the shares exceed 1.
    """
    given, mirrored = tuple(arms), tuple(dict.fromkeys(shadows))
    for arm in given:
        if not arm.name.isidentifier() or arm.name in _RESERVED:
            taken = ", ".join(_RESERVED)
            raise TidemillError(f"{arm.name!r} cannot be the name of an arm: letters, digits and _, and not {taken}.")
        if not 0 < arm.share <= 1:
            raise TidemillError(f"The share of {arm.name} is {arm.share}; it must lie above 0 and be at most 1.")
    if len({arm.name for arm in given}) < len(given):
        raise TidemillError("Two arms have the same name; their answers could not be told apart.")
    if sum(arm.share for arm in given) > 1 + 1e-9:
        total = sum(arm.share for arm in given)
        raise TidemillError(f"The shares add up to {total:.4g}; together they must be at most 1.")
    id = fingerprint(model, [[arm.name, arm.version] for arm in given])[:16] if given else ""
    return Route(id, given, mirrored, paired and bool(given), until)


def shadow_nonce(nonce: str, version: int) -> str:
    """Return the nonce of a mirrored prediction: it gives it an id of its own, and tells which answer it mirrors."""
    call, colon, place = nonce.rpartition(":")
    return f"{call}/v{version}:{place}" if colon else f"{nonce}/v{version}"


def served_nonce(nonce: str) -> str:
    """Return the nonce of the answer that a mirrored prediction of this ``nonce`` mirrors."""
    return _MIRRORED.sub("", nonce)


def choose(route: Route, key: Sequence[Any]) -> Arm | None:
    """Return the arm that answers about ``key`` (plain values, times as microseconds), or None for the champion."""
    if not route.arms:
        return None
    at = bucket(canonical(list(key)).decode(), salt=route.id)
    reach = 0.0
    for arm in route.arms:
        reach += arm.share
        if at < reach:
            return arm
    return None


def split(route: Route, champion: int, keys: Sequence[Sequence[Any]]) -> list[tuple[str, int, list[int]]]:
    """Return who answers which of ``keys``: (route's name, version, places), the champion first, then arm by arm."""
    if not route.arms:
        return [(CHAMPION, champion, list(range(len(keys))))]
    found: dict[Arm | None, list[int]] = {None: []} | {arm: [] for arm in route.arms}
    for place, key in enumerate(keys):
        found[choose(route, key)].append(place)
    return [
        (CHAMPION, champion, places) if arm is None else (arm.name, arm.version, places)
        for arm, places in found.items()
        if places
    ]


def mirrors(route: Route, champion: int, answered: str, version: int) -> tuple[int, ...]:
    """Return the versions that a question is mirrored to which ``version`` answered by the route ``answered``."""
    seen = [each for each in route.shadows if each != version]
    if route.paired and answered not in (CHAMPION, PINNED) and champion not in (version, *seen):
        seen.append(champion)
    return () if answered == PINNED else tuple(seen)
