"""The models of all settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from consumerkit.settings.layers import read_layers
from consumerkit.settings.origins import Origins
from consumerkit.settings.refusals import refusal
from consumerkit.transports.kafka import Client
from consumerkit.transports.sasl import Mechanism
from consumerkit.transports.token_endpoint import Authentication

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def _none(value: object) -> object:
    return None if value == "none" else value


Lasting = Annotated[Seconds | None, BeforeValidator(_none)]
Limit = Annotated[Count | None, BeforeValidator(_none)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(_Section):
    """Where the broker is, and how to log in; see `Kafka`, `Sasl`, `TokenEndpoint` and `Tls`.

    A `username` selects SASL with a password, and `token_endpoint` selects a login by tokens; both
    use TLS unless `tls` is false. Without them, `tls` or one of its files selects TLS.
    """

    bootstrap: str | list[str] | None = None
    transport: Client | None = None
    client_id: str | None = None
    allow_insecure: bool | None = None
    mechanism: Mechanism | Literal["OAUTHBEARER"] | None = None
    username: str | None = None
    password: SecretStr | None = None
    token_endpoint: str | None = None
    token_client_id: str | None = None
    token_client_secret: SecretStr | None = None
    token_scope: str | None = None
    token_authentication: Authentication | None = None
    token_parameters: dict[str, str] | None = None
    token_ca_file: str | None = None
    token_extensions: dict[str, str] | None = None
    tls: bool | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    key_password: SecretStr | None = None


class TableSettings(_Section):
    """Prefix and schema of consumerkit's tables; see `Tables`."""

    prefix: str | None = None
    schema_: str | None = Field(default=None, alias="schema")


class HandlerSettings(_Section):
    """Settings of one handler; see the handler's attributes of these names.

    `dead_letter` is the name of the topic, for a handler that declares `DeadLetter`.
    """

    topic: str | None = Field(default=None, min_length=1)
    topics: list[str] | None = Field(default=None, min_length=1)
    group: str | None = Field(default=None, min_length=1)
    dead_letter: str | None = Field(default=None, min_length=1)
    concurrency: Count | None = None
    batch_size: Count | None = None
    batch_time: Seconds | None = None
    shares_transaction: bool | None = None
    size_limit: Limit = None
    parking_limit: Count | None = None
    step_concurrency: Count | None = None
    start_from: Literal["earliest", "latest"] | None = None


class Settings(BaseSettings):
    """Settings of a worker, read from the environment and a TOML file when it is made.

    A value that is not set stays what the code says. The first source that sets a value decides:
    the arguments here, then the environment (`CONSUMERKIT_...`), then the file. The file is
    `file=`, else the one that `CONSUMERKIT_CONFIG` names, else `consumerkit.toml`, else
    `[tool.consumerkit]` in `pyproject.toml`, both in the working directory.

    Raises:
        ConfigurationError: A setting is unknown, wrong, or given twice in one source; one line
            names it.

    Example:
        worker = Worker(settings=Settings(), handlers=[CreditAccount()])
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix="CONSUMERKIT_", env_nested_delimiter="__")

    database: SecretStr | None = None
    topic_prefix: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{0,100}$")
    kafka: KafkaSettings = KafkaSettings()
    tables: TableSettings = TableSettings()
    handlers: dict[str, HandlerSettings] = {}
    memory_budget: Count | None = None
    transaction_timeout: Seconds | None = None
    drain_timeout: Seconds | None = None
    grace: Seconds | None = None
    stall_timeout: Seconds | None = None
    retention: Lasting = None
    payload_retention: Lasting = None
    tracing: bool | None = None

    _origins: Origins = PrivateAttr(default_factory=Origins)

    def __init__(self, *, file: str | Path | None = None, **values: Any) -> None:
        merged, origins = read_layers(type(self), values, file)
        try:
            super().__init__(**merged)
        except ValidationError as error:
            raise refusal(error, origins, type(self)) from None
        self._origins = origins

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return one source: `read_layers` has read and merged the others, and knows where each value was set."""
        return (init_settings,)

    def origin(self, *path: str) -> str | None:
        """Return where a value was set: the variable, the file and its key, or "code"; None where it was not set.

        Example:
            >>> Settings(grace=5).origin("grace")
            'code'
        """
        return self._origins.of(path)

    def is_set(self, *path: str) -> bool:
        """Tell whether a value was set anywhere, its default included."""
        return self.origin(*path) is not None

    def all_origins(self) -> Mapping[tuple[str, ...], str]:
        """Return where each value was set, without those that were not."""
        return self._origins.found
