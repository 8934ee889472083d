"""The access rules that `consumerkit grants --kafka` prints."""

from consumerkit import DeadLetter, Handler, header
from consumerkit.cli.kafka_rules import commands, rules
from consumerkit.handlers.declaration import declare_all


class Credit(Handler[bytes]):
    name = "credit"
    topics = ("payments", "refunds")
    group = "credit's"
    message_id = header("id")
    dead_letter = DeadLetter("payments.dlq")
    publishes = ("receipts",)

    def handle(self, event: bytes, context: object) -> None: ...


class Mail(Handler[bytes]):
    name = "mail"
    topic = "mails"
    message_id = header("id")

    def handle(self, event: bytes, context: object) -> None: ...


def test_each_topic_and_group_has_one_rule_with_all_that_is_needed() -> None:
    told = rules(declare_all([Credit(), Mail()]), ["refunds"])
    assert [tuple(rule) for rule in told] == [
        ("topic", "mails", ("Read", "DescribeConfigs")),
        ("topic", "payments", ("Read", "DescribeConfigs")),
        ("topic", "payments.dlq", ("Write",)),
        ("topic", "receipts", ("Write",)),
        ("topic", "refunds", ("Read", "DescribeConfigs", "Write")),
        ("group", "credit's", ("Read",)),
        ("group", "mail", ("Read",)),
    ]
    lines = commands(told, "User:CN=shop worker")
    assert lines[3] == (
        'kafka-acls.sh --bootstrap-server "$KAFKA" --command-config admin.properties --add '
        "--allow-principal 'User:CN=shop worker' --operation Write --topic receipts"
    )
    assert lines[5].endswith("""--group 'credit'"'"'s'""")
