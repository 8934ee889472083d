"""Settings of a worker: from code, the environment and a TOML file."""

from consumerkit.settings.model import HandlerSettings, KafkaSettings, Settings, TableSettings

__all__ = ["HandlerSettings", "KafkaSettings", "Settings", "TableSettings"]
