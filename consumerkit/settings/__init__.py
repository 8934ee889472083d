"""Settings from outside the code: the environment, a TOML file, and what code says."""

from consumerkit.settings.model import HandlerSettings, KafkaSettings, Settings, TableSettings

__all__ = ["HandlerSettings", "KafkaSettings", "Settings", "TableSettings"]
