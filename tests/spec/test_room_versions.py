"""Room versions: in which of them each rule holds."""

from __future__ import annotations

import pytest

from ranvier.spec.errors import MatrixError
from ranvier.spec.room_versions import DEFAULT_ROOM_VERSION, ROOM_VERSIONS, room_version

ALL = range(1, 13)

RULES: list[tuple[str, range]] = [
    ("event_id_in_pdu", range(1, 3)),
    ("event_id_urlsafe", range(4, 13)),
    ("strict_canonical_json", range(6, 13)),
    ("enforce_key_validity", range(5, 13)),
    ("room_id_is_create_hash", range(12, 13)),
    ("redaction_keeps_aliases", range(1, 6)),
    ("redaction_keeps_allow", range(8, 13)),
    ("redaction_keeps_authorising_user", range(9, 13)),
    ("redaction_cleaned_up", range(11, 13)),
    ("redacts_in_content", range(11, 13)),
    ("redaction_needs_same_domain", range(1, 3)),
    ("aliases_authorised_by_domain", range(1, 6)),
    ("limit_notifications_levels", range(6, 13)),
    ("knocking", range(7, 13)),
    ("restricted_joins", range(8, 13)),
    ("knock_restricted_joins", range(10, 13)),
    ("integer_power_levels", range(10, 13)),
    ("creator_in_content", range(1, 11)),
    ("privileged_creators", range(12, 13)),
]


@pytest.mark.parametrize(("rule", "holds_in"), RULES, ids=[rule for rule, _ in RULES])
def test_rules(rule: str, holds_in: range) -> None:
    """If this fails, rooms of some version behave here unlike on other servers."""
    found = [number for number in ALL if getattr(ROOM_VERSIONS[str(number)], rule)]
    assert found == list(holds_in)


def test_state_resolution() -> None:
    """If this fails, servers disagree on who is in a room after a fork."""
    algorithms = [ROOM_VERSIONS[str(number)].state_resolution for number in ALL]
    assert algorithms == ["v1"] + ["v2"] * 10 + ["v2.1"]


def test_finding_versions() -> None:
    """If this fails, rooms are made in another version than the one that was asked for."""
    assert DEFAULT_ROOM_VERSION.identifier == "12"
    assert [room_version(identifier).identifier for identifier in ROOM_VERSIONS] == list(map(str, ALL))
    with pytest.raises(MatrixError) as error:
        room_version("org.example.unknown")
    assert error.value.errcode == "M_UNSUPPORTED_ROOM_VERSION"
