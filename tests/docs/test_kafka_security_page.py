"""The examples of the page on Kafka's security do what they say, with stand-ins for the cloud's packages."""

from __future__ import annotations

import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from consumerkit import Kafka, OAuthBearer
from tests.docs.markdown import ROOT
from tests.services.token_endpoint import new_token

EXPIRES = time.time() + 86_400  # the tests of a slow machine run for longer than a token of the clouds lives


class Signer:
    """The AWS signer's module."""

    @staticmethod
    def generate_auth_token(region: str) -> tuple[str, int]:
        assert region == "eu-central-1"
        return new_token(900), int(EXPIRES * 1000)


class Credential:
    """azure-identity's credential."""

    def get_token(self, *scopes: str) -> SimpleNamespace:
        assert scopes == ("https://shop.servicebus.windows.net/.default",)
        return SimpleNamespace(token=new_token(900), expires_on=int(EXPIRES))


def test_the_examples_log_in_with_the_tokens_of_aws_and_azure(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins: dict[str, dict[str, Any]] = {
        "aws_msk_iam_sasl_signer": {"MSKAuthTokenProvider": Signer},
        "azure": {},
        "azure.identity": {"DefaultAzureCredential": Credential},
    }
    for name, values in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    page = (ROOT / "docs" / "kafka-security.md").read_text()
    made: dict[str, Any] = {}
    for block in page.split("```python\n")[1:]:
        exec(compile(block.partition("```")[0], "kafka-security.md", "exec"), made)
    for name in ("msk", "entra"):
        kafka = made[name]
        assert isinstance(kafka, Kafka)
        assert isinstance(kafka.security, OAuthBearer)
        assert kafka.security.keeper().wait(60).expires_at == pytest.approx(EXPIRES, abs=1)
    assert isinstance(made["by_token"].security, OAuthBearer)
