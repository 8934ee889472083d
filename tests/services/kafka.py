"""A real Apache Kafka: one process, broker and controller at once (KRaft), its jars brought by Maven."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.services.process import (
    NotOurs,
    ServerProcess,
    ServiceError,
    cache_directory,
    free_port,
    new_directory,
    wait_until,
)

VARIABLE = "CONSUMERKIT_TEST_KAFKA"
VERSION_VARIABLE = "CONSUMERKIT_TEST_KAFKA_VERSION"
DEFAULT_VERSION = "4.1.2"
OLDEST_JAVA = 17

_POM = Path(__file__).with_name("pom.xml")
# Short waits only where the default would make a test wait; nothing here changes what is durable or in which order.
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
log.dirs={directory}/data
num.partitions=1
auto.create.topics.enable=false
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=2000
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=10000
group.consumer.min.heartbeat.interval.ms=500
group.consumer.heartbeat.interval.ms=1000
log.initial.task.delay.ms=5000
"""
_HEAP = ("-Xms256m", "-Xmx512m", "-XX:+UseSerialGC")
# A broker that lives for seconds never earns back what compiling its code for speed costs.
_SHORT_LIVED = ("-XX:TieredStopAtLevel=1",)


class KafkaServer:
    """A running broker; a context manager that stops it, if it was started here.

    Attributes:
        bootstrap: `host:port`, for `bootstrap.servers`.
        version: Kafka's version, or `unknown` for a given server that does not say.
    """

    def __init__(self, bootstrap: str, version: str, process: ServerProcess | None = None) -> None:
        self.bootstrap = bootstrap
        self.version = version
        self._process = process

    @classmethod
    def find_or_start(cls) -> Self:
        """The broker that `CONSUMERKIT_TEST_KAFKA` names, else a new one.

        Raises:
            ServiceError: Java or Maven is missing, or the broker does not answer.
        """
        given = os.environ.get(VARIABLE)
        if not given:
            return cls.start_private(lasting=True)
        server = cls(given, os.environ.get(VERSION_VARIABLE, "unknown"))
        if not server._answers(within=60.0):
            raise ServiceError(f"no Kafka answers at {given}; start it, or unset {VARIABLE}")
        return server

    @staticmethod
    def prepare() -> None:
        """Bring what `find_or_start` will need; the first time that is a download, too long for a test's timeout.

        Raises:
            ServiceError: Java or Maven is missing, or Maven cannot bring Kafka.
        """
        if not os.environ.get(VARIABLE):
            bring(os.environ.get(VERSION_VARIABLE, DEFAULT_VERSION))

    @classmethod
    def start_private(cls, *, lasting: bool = False) -> Self:
        """A broker of one's own, which may be paused, killed and restarted; `lasting` for more than a test."""
        version = os.environ.get(VERSION_VARIABLE, DEFAULT_VERSION)
        machine = _machine(_distribution(version), lasting=lasting)
        directory = new_directory("kafka")
        try:
            port = free_port()
            process = ServerProcess(_format(machine, directory, port), directory)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        server = cls(f"127.0.0.1:{port}", version, process)
        try:
            server._start()
        except BaseException:
            server.close()
            raise
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_ours(self) -> bool:
        """Whether this object started the broker, and may stop it."""
        return self._process is not None

    def create_topic(self, name: str, partitions: int = 1, config: dict[str, str] | None = None) -> None:
        """Create a topic and wait until each partition has its leader."""
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, config=config or {})
        self._ask(lambda admin: admin.create_topics([topic]))
        wait_until(lambda: self._leaders(name) == partitions, within=120, what=f"topic {name}")

    def delete_topic(self, name: str) -> None:
        """Delete a topic and wait until it is gone."""
        self._ask(lambda admin: admin.delete_topics([name]))
        wait_until(lambda: self._leaders(name) == 0, within=120, what=f"deletion of topic {name}")

    def delete_records(self, topic: str, partition: int, offset: int) -> None:
        """Delete what lies before an offset, as retention does, and wait until it is gone."""
        at = TopicPartition(topic, partition, offset)
        self._ask(lambda admin: admin.delete_records([at]))

    def pause(self) -> None:
        """Stop the broker's process in its tracks (SIGSTOP): connections stay open and nothing answers."""
        self._own().freeze()

    def resume(self) -> None:
        """Let a paused broker go on (SIGCONT)."""
        self._own().send(signal.SIGCONT)

    def kill(self) -> None:
        """End the broker with SIGKILL; `restart` brings it back with what it had on disk."""
        self._own().end(signal.SIGKILL)

    def stop(self) -> None:
        """Shut the broker down in order; `restart` brings it back."""
        self._own().end(signal.SIGTERM)

    def restart(self) -> None:
        """Start the broker again, on the same port and data; a running one is stopped first."""
        self.stop()
        self._start()

    def close(self) -> None:
        """End the broker and remove its data; a given broker is left as it is."""
        if self._process is not None:
            self._process.close()

    def _own(self) -> ServerProcess:
        if self._process is None:
            raise NotOurs("Kafka", VARIABLE)
        return self._process

    def _start(self) -> None:
        process = self._own()
        process.start()
        process.wait_until_ready(lambda: self._answers(within=1.0), within=120, name="Kafka")

    def _answers(self, within: float) -> bool:
        try:
            return bool(self._admin().list_topics(timeout=within).brokers)
        except KafkaException:
            return False

    def _leaders(self, topic: str) -> int:
        found = self._admin().list_topics(topic, timeout=120).topics[topic]
        return 0 if found.error else sum(part.leader >= 0 and not part.error for part in found.partitions.values())

    def _ask(self, request: Callable[[AdminClient], dict[Any, Future[Any]]]) -> None:
        admin = self._admin()  # held until the futures answered: collected earlier, it destroys them
        for future in request(admin).values():
            future.result(timeout=120)

    def _admin(self) -> AdminClient:
        # One per call: a lasting one would report each pause and kill on standard error, and back off after it.
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, "socket.timeout.ms": 10_000})


def bring(version: str) -> None:
    """Bring a release of Kafka, unless it is here.

    Raises:
        ServiceError: Java or Maven is missing, or Maven cannot bring it.
    """
    _java()
    _distribution(version)


def _java() -> str:
    advice = f"Kafka needs Java {OLDEST_JAVA} or newer; on Debian: apt-get install default-jre-headless"
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home, "bin", "java")) if home else shutil.which("java")
    if java is None:
        raise ServiceError(f"no java on PATH: {advice} (or set {VARIABLE} to a running broker)")
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    except (OSError, subprocess.CalledProcessError) as error:
        raise ServiceError(f"{java} does not run ({error}): {advice}") from error
    found = re.search(r'version "(\d+)', said)
    if found is None or int(found[1]) < OLDEST_JAVA:
        raise ServiceError(f"{java} is too old: {advice}")
    return java


def _machine(jars: Path, *, lasting: bool = False) -> list[str]:
    return [_java(), *_HEAP, *(() if lasting else _SHORT_LIVED), "-cp", f"{jars}/*"]


def _distribution(version: str) -> Path:
    """The directory of Kafka's jars, brought by Maven the first time."""
    home = cache_directory() / f"kafka-{version}"
    if home.is_dir():
        return home
    maven = shutil.which("mvn")
    if maven is None:
        raise ServiceError(
            f"no mvn on PATH, which brings Kafka {version}; on Debian: apt-get install maven "
            f"(or set {VARIABLE} to a running broker)"
        )
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix="kafka-") as fresh:
        _copy_jars(maven, version, Path(fresh))
        # Renamed when whole, so that a broken download is never taken for a distribution; of two at once one stays.
        try:
            (Path(fresh) / "jars").rename(home)
        except OSError:
            if not home.is_dir():
                raise
    return home


def _copy_jars(maven: str, version: str, into: Path) -> None:
    shutil.copy(_POM, into / "pom.xml")
    command = [maven, "-B", "-q", f"-Dkafka.version={version}", "-DincludeScope=runtime", "-DoutputDirectory=jars"]
    done = subprocess.run(
        [*command, "dependency:copy-dependencies"], cwd=into, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        errors = [line for line in done.stdout.splitlines() if "ERROR" in line] or ["no reason given"]
        raise ServiceError(f"Maven could not bring Kafka {version}; check its network and settings: {errors[0]}")


def _format(machine: list[str], directory: Path, port: int) -> list[str]:
    """Prepare the data directory; returns the command that runs the broker on it."""
    properties = directory / "server.properties"
    text = _PROPERTIES.format(port=port, controller_port=free_port(), directory=directory)
    properties.write_text(text)
    done = subprocess.run(
        [*machine, "kafka.tools.StorageTool", "format", "--standalone", "-t", uuid4().hex[:22], "-c", str(properties)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ServiceError(f"Kafka could not format {directory}: {(done.stdout + done.stderr).strip()[-500:]}")
    return [*machine, "kafka.Kafka", str(properties)]
