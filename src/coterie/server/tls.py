"""Encryption: a certificate and its key, which are looked at before anything is served."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.errors import InputError


@dataclass(frozen=True, slots=True)
class Tls:
    """What a server shows that it is, in PEM.

    Attributes:
        certificate: File with the certificate, followed by those that it was signed with.
        key: File with its private key, without a password.
    """

    certificate: Path
    key: Path

    def check(self) -> None:
        """Makes sure that both can be used.

        Raises:
            InputError: If they cannot.
        """
        for path in (self.certificate, self.key):
            try:
                path.open("rb").close()
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror}.", path=path) from error
        try:
            # Without this, a key with a password would be asked for on the terminal.
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                self.certificate, self.key, _no_password
            )
        except _LockedKeyError:
            raise InputError(
                f"The key in {self.key} has a password.", advice="Write it into a file without one.", path=self.key
            ) from None
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None)
            if reason == "KEY_VALUES_MISMATCH":
                message = f"The key in {self.key} is not that of the certificate in {self.certificate}."
            else:
                message = f"{self.certificate} and {self.key} are no certificate and its key, both in PEM."
            raise InputError(message, path=self.certificate) from error

    def options(self) -> dict[str, Any]:
        """The same for uvicorn."""
        return {"ssl_certfile": str(self.certificate), "ssl_keyfile": str(self.key)}


class _LockedKeyError(Exception):
    """Ends the loading of a key that has a password."""


def _no_password() -> str:
    raise _LockedKeyError
