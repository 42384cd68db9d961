"""Several Kafka brokers that replicate to each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from stack import leftovers, ports
from stack.kafka import Kafka, Peers
from stack.locations import temporary_folder


class KafkaCluster:
    """Brokers on 127.0.0.1, each a controller too; topics have a replica on each. A context manager, data temporary."""

    def __init__(self, size: int = 3) -> None:
        self._folder = temporary_folder()
        leftovers.remember_folder(self._folder)
        controller_ports = tuple(ports.free_port() for _ in range(size))
        self.brokers = [
            Kafka(self._folder / f"kafka-{node}", ports.free_port(), peers=Peers(node, controller_ports))
            for node in range(1, size + 1)
        ]

    @property
    def bootstrap(self) -> str:
        """The addresses of all."""
        return ",".join(broker.address for broker in self.brokers)

    def broker(self, node: int) -> Kafka:
        """The one of that number, from 1: `node.id` in Kafka's metadata."""
        return self.brokers[node - 1]

    def __enter__(self) -> KafkaCluster:
        try:
            with ThreadPoolExecutor(len(self.brokers)) as pool:
                list(pool.map(_start, self.brokers))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End all brokers and delete their data. Idempotent."""
        for broker in self.brokers:
            broker.cancelled.set()
            if broker.running:
                broker.kill()
        leftovers.delete_folder(self._folder)


def _start(broker: Kafka) -> None:
    broker.prepare()
    broker.start()
    broker.wait_ready()
