"""Names of people: one form, and nothing in them that shows as something else."""

from __future__ import annotations

import pytest

from cleanup.errors import FacebankError
from cleanup.names import check_person_name, fold_name


@pytest.mark.parametrize(
    "odd",
    ["\0", "\n", "\r", "\t", "\x1b[2J", "\x7f", "\u0085", "\u202a", "\u202e", "\u2066", "\u2069", "\u2028", "\udcff"],
)
def test_a_name_that_would_not_be_seen_as_it_is_is_refused(odd: str) -> None:
    with pytest.raises(FacebankError, match=rf"U\+{ord(odd[0]):04X}") as caught:
        check_person_name(f"An{odd}na")

    assert str(caught.value).isprintable()


def test_names_of_every_script_are_taken_in_one_form() -> None:
    assert check_person_name(" Jose\u0301 ") == "Jos\u00e9"
    for name in (
        "\u0645\u06cc\u200c\u0646\u0627",
        "\u738b\u83f2",
        "O\u2019Neil-\u0160ir\u00e1",
        "\u0e2d\u0e49\u0e2d\u0e21",
    ):
        assert check_person_name(name) == name
    assert fold_name("JOSE\u0301 Stra\u00dfe") == fold_name("jos\u00e9 STRASSE")
    with pytest.raises(FacebankError, match="empty"):
        check_person_name(" \u3000")
