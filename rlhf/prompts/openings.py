"""Our prompts: openings of film reviews that say nothing good or bad yet, by a small grammar.

The prompts of the DPO paper (Rafailov et al. 2023, section 6) are the first words of IMDb reviews;
these are of the same kind, three to eight words long, and free of any word that VADER scores.
"""

import random
from functools import cache
from itertools import product

PER_TEMPLATE = 160  # so that no template outweighs the others
_SEED = 6

_FILMS = ("movie", "film", "documentary", "western", "drama", "musical", "sequel", "remake")
_KINDS = tuple(
    """
    French Italian Japanese Korean Canadian British Swedish Indian Spanish German Danish Polish
    Hollywood independent animated silent black-and-white recent two-hour low-budget
""".split()
)
_PARTS = tuple(
    (
        "acting, plot, script, story, ending, opening scene, soundtrack, dialogue, camera work, "
        "direction, editing, pacing, cast, main character, screenplay, first half, final scene, "
        "lead actor"
    ).split(", ")
)
_PEOPLE = tuple(
    """
    brother sister mother father wife husband neighbor cousin roommate son daughter uncle aunt
    teacher boss
""".split()
)
_TIMES = tuple(
    (
        "last night, on Sunday, yesterday, last week, on a plane, at home, on television, "
        "in a theater, last month, in the afternoon, last summer, with my family, on DVD, "
        "years ago"
    ).split(", ")
)
_MAKERS = tuple(
    (
        "director, writer, lead actor, lead actress, producer, composer, cinematographer, "
        "narrator, studio, editor"
    ).split(", ")
)
_SUBJECTS = tuple(
    (
        "a small town, two brothers, a train robbery, a family reunion, a space mission, "
        "an old painter, a road trip, a chess player, a lighthouse keeper, a taxi driver, "
        "three sisters, a village school, a jazz band, a hotel clerk, a boxer"
    ).split(", ")
)

# Each slot is a choice; every combination of three to eight words is an opening.
_TEMPLATES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("The",), _PARTS, ("of this", "in this"), _FILMS, ("is", "was")),
    (
        ("I watched this", "I saw this", "We saw this", "We watched this", "I rented this"),
        _FILMS,
        _TIMES,
        ("and", "and I", "and we"),
    ),
    (("This", "That"), _KINDS, _FILMS, ("is", "was", "has", "left me")),
    (
        ("My",),
        _PEOPLE,
        ("and I thought this", "said that this", "told me this"),
        _FILMS,
        ("was", "is"),
    ),
    (("The",), _MAKERS, ("of this", "behind this"), _FILMS, ("has", "is", "made")),
    (
        tuple(
            (
                "When I first saw this, After watching this, By the end of this, "
                "Halfway through this, Having seen this, While watching this"
            ).split(", ")
        ),
        _FILMS,
        ("I felt", "I was", "we felt", "we were"),
    ),
    (("A", "This"), _FILMS, ("about",), _SUBJECTS, ("that is", "is", "was")),
    (
        tuple(
            (
                "I would describe this, I would call this, I remember this, "
                "People will see this, Reviewers described this, Audiences will remember this"
            ).split(", ")
        ),
        _FILMS,
        ("as", "as a"),
    ),
    (
        (
            "Compared to the book, this",
            "From the first scene this",
            "From start to finish this",
            "Unlike the trailer, this",
            "After ten minutes this",
            "Looking back, this",
            "In my opinion, this",
            "As a whole, this",
        ),
        _FILMS,
        ("is", "was", "felt"),
    ),
    (
        ("To me, the", "For me, the", "Once again, the"),
        _PARTS,
        ("of this", "in this"),
        _FILMS,
        ("is", "was"),
    ),
    (
        ("I think the", "I thought the", "We found the", "I found the"),
        _PARTS,
        ("in this", "of this"),
        _FILMS,
    ),
    (
        ("This is a", "It was a", "This was a", "It is a"),
        _FILMS,
        ("that", "which", "where"),
        ("the viewer", "the audience", "everyone", "left me", "you"),
    ),
)


@cache
def openings() -> tuple[str, ...]:
    """Every opening once, in an order that is shuffled but always the same."""
    rng = random.Random(_SEED)
    found: dict[str, None] = {}
    for template in _TEMPLATES:
        written = [text for words in product(*template) if _fits(text := " ".join(words))]
        found |= dict.fromkeys(rng.sample(written, min(PER_TEMPLATE, len(written))))
    return tuple(rng.sample(list(found), len(found)))


def _fits(opening: str) -> bool:
    return 3 <= len(opening.split()) <= 8
