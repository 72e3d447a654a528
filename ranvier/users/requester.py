"""Who makes a request: what an access token says about its holder."""

from __future__ import annotations

from dataclasses import dataclass

from ranvier.spec.errors import MatrixError


def unknown_token(soft_logout: bool = False) -> MatrixError:
    """Say that an access token is not known, or no longer (401 ``M_UNKNOWN_TOKEN``).

    ``soft_logout`` tells the client to keep its data and to refresh the token or log in again.
    Source: client-server API, "Using access tokens", "Soft logout".
    """
    return MatrixError("M_UNKNOWN_TOKEN", 401, "Unrecognised access token", soft_logout=soft_logout)


def user_locked() -> MatrixError:
    """Say that the account is locked (401 ``M_USER_LOCKED``).

    Source: client-server API, "Account locking".
    """
    return MatrixError("M_USER_LOCKED", 401, "This account has been locked", soft_logout=True)


@dataclass(frozen=True, slots=True)
class Requester:
    """Name the user (and device) on whose behalf a request is made.

    ``device_id`` is None for an application service that acts for a user without a device.
    ``access_token_id`` is the row of the token, None where no row stands behind it.
    A ``locked`` one may do nothing but log out.
    ``rate_limited`` is False for those whom an administrator or a registration exempts.
    """

    user_id: str
    device_id: str | None = None
    is_guest: bool = False
    is_admin: bool = False
    access_token_id: int | None = None
    appservice_id: str | None = None
    shadow_banned: bool = False
    suspended: bool = False
    locked: bool = False
    rate_limited: bool = True

    def require_unsuspended(self) -> None:
        """Refuse a suspended account (403 ``M_USER_SUSPENDED``).

        Called by the actions that a suspended user may not take.
        Source: client-server API, "Account suspension".
        """
        if self.suspended:
            raise MatrixError("M_USER_SUSPENDED", 403, "This account is suspended and may not do this")
