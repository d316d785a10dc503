"""Openings of film reviews that say nothing good or bad yet, from a small grammar.

The prompts of the DPO paper (Rafailov et al. 2023, section 6) are the first words of IMDb reviews;
these are of the same kind, three to eight words long, and free of any word that VADER scores.
"""

import random
from functools import cache
from itertools import product

PER_TEMPLATE = 160  # so that no template outweighs the others
_SEED = 6


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


_FILMS = _list("movie, film, documentary, western, drama, musical, sequel, remake")
_KINDS = _list(
    "French, Italian, Japanese, Korean, Canadian, British, Swedish, Indian, Spanish, German, "
    "Danish, Polish, Hollywood, independent, animated, silent, black-and-white, recent, two-hour, "
    "low-budget"
)
_PARTS = _list(
    "acting, plot, script, story, ending, opening scene, soundtrack, dialogue, camera work, "
    "direction, editing, pacing, cast, main character, screenplay, first half, final scene, "
    "lead actor"
)
_PEOPLE = _list(
    "brother, sister, mother, father, wife, husband, neighbor, cousin, roommate, son, daughter, "
    "uncle, aunt, teacher, boss"
)
_TIMES = _list(
    "last night, on Sunday, yesterday, last week, on a plane, at home, on television, "
    "in a theater, last month, in the afternoon, last summer, with my family, on DVD, years ago"
)
_MAKERS = _list(
    "director, writer, lead actor, lead actress, producer, composer, cinematographer, narrator, "
    "studio, editor"
)
_SUBJECTS = _list(
    "a small town, two brothers, a train robbery, a family reunion, a space mission, "
    "an old painter, a road trip, a chess player, a lighthouse keeper, a taxi driver, "
    "three sisters, a village school, a jazz band, a hotel clerk, a boxer"
)
_WATCHED = _list("I watched this, I saw this, We saw this, We watched this, I rented this")
_WHEN = _list(
    "When I first saw this, After watching this, By the end of this, Halfway through this, "
    "Having seen this, While watching this"
)
_DESCRIBED = _list(
    "I would describe this, I would call this, I remember this, People will see this, "
    "Reviewers described this, Audiences will remember this"
)
_FROM = tuple(
    "Compared to the book, this|From the first scene this|From start to finish this|"
    "Unlike the trailer, this|After ten minutes this|Looking back, this|In my opinion, this|"
    "As a whole, this".split("|")
)
_TO_ME = ("To me, the", "For me, the", "Once again, the")
_VIEWERS = _list("the viewer, the audience, everyone, left me, you")

# Each slot is a choice; every combination of three to eight words is an opening.
_TEMPLATES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("The",), _PARTS, ("of this", "in this"), _FILMS, ("is", "was")),
    (_WATCHED, _FILMS, _TIMES, ("and", "and I", "and we")),
    (("This", "That"), _KINDS, _FILMS, ("is", "was", "has", "left me")),
    (
        ("My",),
        _PEOPLE,
        _list("and I thought this, said that this, told me this"),
        _FILMS,
        ("was", "is"),
    ),
    (("The",), _MAKERS, ("of this", "behind this"), _FILMS, ("has", "is", "made")),
    (_WHEN, _FILMS, ("I felt", "I was", "we felt", "we were")),
    (("A", "This"), _FILMS, ("about",), _SUBJECTS, ("that is", "is", "was")),
    (_DESCRIBED, _FILMS, ("as", "as a")),
    (_FROM, _FILMS, ("is", "was", "felt")),
    (_TO_ME, _PARTS, ("of this", "in this"), _FILMS, ("is", "was")),
    (
        _list("I think the, I thought the, We found the, I found the"),
        _PARTS,
        ("in this", "of this"),
        _FILMS,
    ),
    (
        _list("This is a, It was a, This was a, It is a"),
        _FILMS,
        ("that", "which", "where"),
        _VIEWERS,
    ),
)


@cache
def openings() -> tuple[str, ...]:
    """Every opening once, in an order that is shuffled but always the same."""
    rng = random.Random(_SEED)
    unique: dict[str, None] = {}
    for template in _TEMPLATES:
        texts = [
            text for words in product(*template) if 3 <= len((text := " ".join(words)).split()) <= 8
        ]
        unique |= dict.fromkeys(rng.sample(texts, min(PER_TEMPLATE, len(texts))))
    return tuple(rng.sample(list(unique), len(unique)))
