"""What an administrator is told of the settings of single sign-on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ranvier.config import Config
from ranvier.config.claim_templates import TemplateFailed, render_strictly
from tests.test_config import problems, read

PROVIDER = {
    "idp_id": "corp",
    "idp_name": "Corp",
    "issuer": "https://id.example.org/realms/corp",
    "client_id": "matrix",
    "client_secret": "s3cret",
}


def text(*providers: dict[str, Any], **changes: Any) -> str:
    """Write a configuration with some providers."""
    fields = {"public_baseurl": "https://matrix.example.org", "oidc_providers": providers, **changes}
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in fields.items() if value is not None)


def test_a_provider_of_a_synapse_is_understood(tmp_path: Path) -> None:
    """An administrator who brings a configuration along would have nobody log in."""
    (tmp_path / "secret").write_text("from a file\n")
    provider = {
        **PROVIDER,
        "client_secret": None,
        "client_secret_path": "secret",
        "idp_brand": "keycloak",
        "scopes": ["openid", "profile"],
        "user_mapping_provider": {
            "module": "synapse.handlers.oidc.JinjaOidcMappingProvider",
            "config": {"localpart_template": "{{ user.preferred_username }}", "confirm_localpart": True},
        },
        "attribute_requirements": [{"attribute": "groups", "value": "matrix"}],
        "skip_verification": False,
        "jwks_uri": "https://id.example.org/jwks",
        "backchannel_logout_enabled": True,
    }
    config: Config = read(tmp_path, text(provider, sso={"client_whitelist": ["https://app.example.org/"]}))
    (found,) = config.sso.providers
    assert found.client_secret == "from a file"
    assert "from a file" not in repr(config)
    assert (found.client_auth_method, found.pkce_method) == ("client_secret_basic", "auto")
    assert found.attribute_requirements[0].values == ("matrix",)
    assert config.sso.client_whitelist == ("https://app.example.org/",)
    assert {(it.key, it.severity) for it in config.warnings} == {
        ("oidc_providers.0.skip_verification", "note"),
        ("oidc_providers.0.jwks_uri", "note"),
        ("oidc_providers.0.backchannel_logout_enabled", "warning"),
    }


@pytest.mark.parametrize(
    ("changes", "key", "told"),
    [
        ({"issuer": None}, "issuer", "expected this of every provider"),
        ({"idp_id": None}, "idp_id", "expected this of every provider"),
        ({"idp_id": "a b"}, "idp_id", "a name of letters"),
        ({"idp_id": ".."}, "idp_id", "a name of letters"),
        ({"issuer": "http://id.example.org"}, "issuer", "https://"),
        ({"issuer": "https://user@id.example.org/"}, "issuer", "https://"),
        ({"token_endpoint": "ftp://localhost/"}, "token_endpoint", "https://"),
        ({"token_endpoint": "https://a.b:c/"}, "token_endpoint", "https://"),
        ({"client_secret": None}, "client_secret", "client_auth_method: none"),
        ({"client_auth_method": "private_key_jwt"}, "client_auth_method", "one of client_secret_basic"),
        ({"pkce_method": True}, "pkce_method", "one of auto, always, never"),
        ({"discover": False}, "token_endpoint", "because discover is false"),
        ({"scopes": []}, "scopes", "a list of scopes"),
        ({"idp_icon": "https://a.b/c.png"}, "idp_icon", "mxc://"),
        ({"attribute_requirements": [{"value": "x"}]}, "attribute_requirements.0.attribute", "a claim"),
        ({"user_mapping_provider": {"module": "my.Own"}}, "user_mapping_provider.module", "no modules"),
        (
            {"user_mapping_provider": {"config": {"localpart_template": "{{ user."}}},
            "user_mapping_provider.config.localpart_template",
            "a Jinja2 template",
        ),
        (
            {"user_mapping_provider": {"config": {"subject_claim": "a", "subject_template": "b"}}},
            "user_mapping_provider.config.subject_template",
            "not both",
        ),
    ],
)
def test_wrong_settings_are_told_by_their_key(
    tmp_path: Path, changes: dict[str, Any], key: str, told: str
) -> None:
    """The first to hear of a mistake would be somebody who can not log in."""
    found = problems(tmp_path, text({**PROVIDER, **changes}))
    mine = [it for it in found if it.key == f"oidc_providers.0.{key}" and it.severity == "error"]
    assert any(told in it.message for it in mine), found


def test_a_provider_on_this_machine_needs_no_tls(tmp_path: Path) -> None:
    """Nobody could try it out."""
    for host in ("localhost:8080", "127.0.0.1", "[::1]:8080"):
        assert read(tmp_path, text({**PROVIDER, "issuer": f"http://{host}/x"})).warnings == ()


def test_what_is_missing_beside_the_providers_is_told(tmp_path: Path) -> None:
    """Providers would send people back to nowhere, or to another provider's login."""
    (missing,) = problems(tmp_path, text(PROVIDER, public_baseurl=None))
    assert "public_baseurl" in missing.message
    (twice,) = (it for it in problems(tmp_path, text(PROVIDER, PROVIDER)) if it.severity == "error")
    assert "more than one provider has the idp_id corp" in twice.message
    club = {**PROVIDER, "idp_id": "club", "own_callback": True}
    (shared,) = read(tmp_path, text(PROVIDER, club)).warnings
    assert (shared.key, shared.severity) == ("oidc_providers.0.own_callback", "note")
    misspelt = read(tmp_path, text({**PROVIDER, "scope": ["openid"]}, sso={"client_whitelists": []}))
    assert [it.message.partition("; ")[2] for it in misspelt.warnings] == [
        "did you mean scopes?",
        "did you mean client_whitelist?",
    ]


@pytest.mark.parametrize(
    ("template", "claims"),
    [
        ("{{ user.eid ~ '@' ~ user.iss }}", {"eid": [], "iss": "i"}),
        ("{{ user.eid ~ '@' ~ user.iss }}", {"eid": False, "iss": "i"}),
        ("{{ user.eid ~ '@' ~ user.iss }}", {"eid": {"a": None}, "iss": "i"}),
        ("{{ user.eid | lower }}@x", {"eid": ["staff"]}),
        ("{{ user.a.b | lower }}@x", {"a": {"b": None}}),
        ("{{ user.a.b ~ '@x' }}", {"a": {"b": " "}}),
    ],
)
def test_nobody_is_known_by_what_is_no_word(template: str, claims: dict[str, Any]) -> None:
    """All who have no number of their own there would be one person here, with one account."""
    with pytest.raises(TemplateFailed):
        render_strictly(template, claims)


def test_people_are_known_by_words_and_numbers() -> None:
    """Nobody would come in where the number of somebody stands in another claim."""
    claims = {"a": {"b": "Bob", "n": 0}, "groups": ["x"]}
    assert render_strictly("{{ user.a.b | lower }}-{{ user.a.n }}", claims) == "bob-0"
