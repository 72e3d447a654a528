"""The one error family: raised anywhere, rendered to a client in one place (``http``)."""

from __future__ import annotations

from typing import Any


class MatrixError(Exception):
    """Tell the caller what went wrong, in the form of the specification.

    ``errcode`` is one of the specification's codes (``M_FORBIDDEN``), ``status`` the HTTP status,
    ``message`` one sentence for a person, ``fields`` further keys of the JSON answer
    (``retry_after_ms``, ``soft_logout``, …).

    Source: client-server API, "Standard error response".
    """

    def __init__(self, errcode: str, status: int, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.errcode = errcode
        self.status = status
        self.message = message
        self.fields = fields

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.errcode!r}, {self.status}, {self.message!r})"

    def body(self) -> dict[str, Any]:
        """Give the JSON object that the client gets."""
        return {"errcode": self.errcode, "error": self.message, **self.fields}


class AuthError(MatrixError):
    """Say that the room's authorisation rules refuse an event (403 ``M_FORBIDDEN``)."""

    def __init__(self, message: str) -> None:
        super().__init__("M_FORBIDDEN", 403, message)


def bad_json(message: str) -> MatrixError:
    """Say that the JSON was valid but had a wrong or missing value (400 ``M_BAD_JSON``)."""
    return MatrixError("M_BAD_JSON", 400, message)


def invalid_param(message: str) -> MatrixError:
    """Say that a parameter has a wrong value (400 ``M_INVALID_PARAM``)."""
    return MatrixError("M_INVALID_PARAM", 400, message)


def missing_param(message: str) -> MatrixError:
    """Say that a required parameter is missing (400 ``M_MISSING_PARAM``)."""
    return MatrixError("M_MISSING_PARAM", 400, message)


def forbidden(message: str) -> MatrixError:
    """Say that the user may not do this (403 ``M_FORBIDDEN``)."""
    return MatrixError("M_FORBIDDEN", 403, message)


def not_found(message: str) -> MatrixError:
    """Say that the thing is not there, or not for this user (404 ``M_NOT_FOUND``)."""
    return MatrixError("M_NOT_FOUND", 404, message)
