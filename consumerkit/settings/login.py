"""Turns Kafka's settings into the login that they describe: by password, by token, by certificate, or none."""

from __future__ import annotations

from typing import Any, Final

from consumerkit.errors import ConfigurationError
from consumerkit.settings.model import KafkaSettings
from consumerkit.transports.kafka import OAuthBearer, Sasl, Tls, TokenEndpoint

_TLS: Final = ("ca_file", "cert_file", "key_file")
_TOKEN: Final = (
    "token_endpoint",
    "token_client_id",
    "token_client_secret",
    "token_scope",
    "token_authentication",
    "token_parameters",
    "token_ca_file",
    "token_extensions",
)


def security_of(kafka: KafkaSettings) -> Sasl | OAuthBearer | Tls | None:
    """Return the login that the settings describe; None where there is none.

    Raises:
        ConfigurationError: A part is missing, or two do not fit together; the message names them.
    """
    files: dict[str, Any] = {name: value for name in _TLS if (value := getattr(kafka, name)) is not None}
    if kafka.key_password is not None:
        files["key_password"] = kafka.key_password.get_secret_value()
    if kafka.tls is False and files:
        raise ConfigurationError(f"settings: kafka has tls=false and {min(files)}; remove one of them")
    tls = None if kafka.tls is False else Tls(**files)
    tokens = [name for name in _TOKEN if getattr(kafka, name) is not None]
    if tokens or kafka.mechanism == "OAUTHBEARER":
        return _by_token(kafka, tokens, tls)
    if kafka.username is None:
        if kafka.password is not None or kafka.mechanism is not None:
            raise ConfigurationError("settings: kafka has a password or mechanism and no username; set kafka.username")
        return tls if files or kafka.tls else None
    if kafka.password is None or kafka.mechanism is None:
        raise ConfigurationError("settings: kafka has a username; set kafka.mechanism and kafka.password, too")
    return Sasl(kafka.mechanism, kafka.username, kafka.password.get_secret_value(), tls=tls)


def _by_token(kafka: KafkaSettings, given: list[str], tls: Tls | None) -> OAuthBearer:
    for name in ("username", "password"):
        if getattr(kafka, name) is not None:
            raise ConfigurationError(
                f"settings: kafka has {name} and {given[0] if given else 'mechanism=OAUTHBEARER'}; "
                "a login is by password or by token: take one of them out"
            )
    if kafka.mechanism not in (None, "OAUTHBEARER"):
        raise ConfigurationError(
            f"settings: kafka has mechanism={kafka.mechanism} and {given[0]}; leave the mechanism out"
        )
    if kafka.token_endpoint is None or kafka.token_client_id is None or kafka.token_client_secret is None:
        raise ConfigurationError(
            "settings: a login to kafka by token needs kafka.token_endpoint, kafka.token_client_id and "
            "kafka.token_client_secret; set all three"
        )
    endpoint = TokenEndpoint(
        kafka.token_endpoint,
        kafka.token_client_id,
        kafka.token_client_secret.get_secret_value(),
        kafka.token_scope,
        authentication=kafka.token_authentication or "basic",
        parameters=kafka.token_parameters or {},
        ca_file=kafka.token_ca_file,
    )
    return OAuthBearer(endpoint, extensions=kafka.token_extensions or {}, tls=tls)
