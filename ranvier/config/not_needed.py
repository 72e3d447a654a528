"""Keys of Synapse's that change nothing here: the design has no use for them, or the feature is not there.

A table of data: names with the reason that an administrator is told.
"""

from __future__ import annotations

from collections.abc import Mapping

_ANY_WORKER = "any worker takes any request and workers find each other"
_OPAQUE = "tokens are random and kept hashed, so there is nothing to sign"
_BOUNDED = "caches are bounded and size themselves"
_SYSTEMD = "the service manager does this"

UNNEEDED: Mapping[str, str] = {
    "instance_map": _ANY_WORKER,
    "stream_writers": _ANY_WORKER,
    "federation_sender_instances": _ANY_WORKER,
    "send_federation": _ANY_WORKER,
    "pusher_instances": _ANY_WORKER,
    "start_pushers": _ANY_WORKER,
    "outbound_federation_restricted_to": _ANY_WORKER,
    "run_background_tasks_on": _ANY_WORKER,
    "update_user_directory_from_worker": _ANY_WORKER,
    "notify_appservices_from_worker": _ANY_WORKER,
    "media_instance_running_background_jobs": _ANY_WORKER,
    "enable_media_repo": _ANY_WORKER,
    "worker_app": _ANY_WORKER,
    "worker_main_http_uri": _ANY_WORKER,
    "worker_replication_host": _ANY_WORKER,
    "worker_replication_port": _ANY_WORKER,
    "worker_replication_http_port": _ANY_WORKER,
    "worker_replication_http_tls": _ANY_WORKER,
    "worker_log_config": "log_level sets it",
    "worker_daemonize": _SYSTEMD,
    "worker_pid_file": _SYSTEMD,
    "daemonize": _SYSTEMD,
    "print_pidfile": _SYSTEMD,
    "pid_file": _SYSTEMD,
    "soft_file_limit": _SYSTEMD,
    "no_redirect_stdio": _SYSTEMD,
    "macaroon_secret_key": _OPAQUE,
    "macaroon_secret_key_path": _OPAQUE,
    "form_secret": _OPAQUE,
    "form_secret_path": _OPAQUE,
    "bcrypt_rounds": "new passwords are hashed with argon2id (password_config.argon2); bcrypt is only read",
    "event_cache_size": _BOUNDED,
    "caches": _BOUNDED,
    "gc_thresholds": "the garbage collector is tuned by the server",
    "gc_min_interval": "the garbage collector is tuned by the server",
    "use_frozen_dicts": "events are never changed in place",
    "log_config": "log_level sets it, and the log goes to standard error",
    "log_file": "the log goes to standard error",
    "verbose": "log_level sets it",
    "report_stats": "nothing is ever reported to anybody",
    "report_stats_endpoint": "nothing is ever reported to anybody",
    "cleanup_extremities_with_dummy_events": "forward extremities are kept few by the write path",
    "dummy_events_threshold": "forward extremities are kept few by the write path",
    "background_updates": "background updates pace themselves",
    "manhole": "there is no manhole",
    "manhole_settings": "there is no manhole",
    "replication_torture_level": "it is a test setting of another server",
    "use_insecure_ssl_client_just_for_testing_do_not_use": "certificates are always checked",
    "user_agent_suffix": "the user agent is fixed",
    "trust_identity_server_for_password_resets": "identity servers are not used for this",
    "enable_metrics": "numbers are always kept, and a listener with the resource metrics shows them",
}
"""Pointless by design: accepted, and said to be unnecessary."""

_FEATURES = """
account_threepid_delegates account_validity allow_device_name_lookup_over_federation
allow_per_room_profiles allow_underscore_prefixed_localpart allowed_avatar_mimetypes allowed_local_3pids
app_service_config_files auto_accept_invites backup_media_store_path cas_config custom_template_directory
default_identity_server default_power_level_content_override delete_stale_devices_after
disable_msisdn_registration dont_notify_new_devices_for dynamic_thumbnails email enable_3pid_changes
enable_3pid_lookup enable_authenticated_media enable_ephemeral_messages enable_local_media_storage
enable_registration_captcha enable_registration_token_3pid_bypass enable_search
exclude_rooms_from_presence exclude_rooms_from_sync experimental_features federation
federation_certificate_verification_whitelist federation_client_minimum_tls_version
federation_custom_ca_list federation_domain_whitelist federation_ip_range_blacklist
federation_metrics_domains federation_rr_transactions_per_room_per_second federation_verify_certificates
federation_whitelist_endpoint_enabled hs_disabled hs_disabled_message http_proxy https_proxy
include_profile_data_on_invite ip_range_blacklist ip_range_whitelist jwt_config
key_server_signing_keys_path limit_remote_rooms limit_usage_by_mau login_via_existing_session
matrix_authentication_service matrix_rtc mau_appservice_trial_days mau_limit_alerting
mau_limits_reserved_threepids mau_stats_only mau_trial_days max_avatar_size max_event_delay_duration
max_image_pixels max_mau_value max_pending_media_uploads max_spider_size media_retention
media_storage_providers media_store_path media_upload_limits metrics_bind_host metrics_flags metrics_port
modules next_link_domain_whitelist no_proxy_hosts oembed oidc_config opentracing
password_providers prevent_media_downloads_from push rc_federation recaptcha_private_key
recaptcha_private_key_path recaptcha_public_key recaptcha_public_key_path recaptcha_siteverify_api
redaction_allowed_period registrations_require_3pid remote_media_download_burst_count
remote_media_download_per_second request_token_inhibit_3pid_errors retention room_prejoin_state
saml2_config sentry server_context server_notices spam_checker stats templates third_party_event_rules
thumbnail_sizes track_appservice_user_ips track_puppeted_user_ips turn_allow_guests turn_password
turn_shared_secret turn_shared_secret_path turn_uris turn_user_lifetime turn_username
unused_expiration_time url_preview_accept_language url_preview_enabled url_preview_ip_range_blacklist
url_preview_ip_range_whitelist url_preview_url_blacklist use_appservice_legacy_authorization user_consent
user_ips_max_age user_types web_client_location
"""

UNSUPPORTED = frozenset(_FEATURES.split())
"""Known names of features that this version does not have: accepted, with a warning."""

_NO_FEDERATION = "this version does not talk to other servers"
_NO_MEDIA = "this version keeps no media"

WITHOUT_EFFECT: Mapping[str, str] = {
    "serve_server_wellknown": _NO_FEDERATION,
    "old_signing_keys": _NO_FEDERATION,
    "key_refresh_interval": _NO_FEDERATION,
    "trusted_key_servers": _NO_FEDERATION,
    "suppress_key_server_warning": _NO_FEDERATION,
    "allow_public_rooms_over_federation": _NO_FEDERATION,
    "allow_profile_lookup_over_federation": _NO_FEDERATION,
    "admin_contact": "this version refuses nobody for reasons that an administrator is asked about",
    "max_upload_size": _NO_MEDIA,
    "rc_media_create": _NO_MEDIA,
    "rc_third_party_invite": "this version invites nobody by email address or phone number",
    "rc_3pid_validation": "this version knows no email addresses and phone numbers",
    "rc_delayed_event_mgmt": "this version has no delayed events",
    "rc_reports": "this version takes no reports",
}
"""Keys whose values are checked, for what this version does not do yet: accepted, with a warning."""
