"""Real Kafka and PostgreSQL, and our services, as child processes on this machine."""

from stack.cluster import KafkaCluster
from stack.engine import Engine
from stack.errors import StackError
from stack.link import Link
from stack.local import Stack
from stack.ports import Ports, free_port
from stack.services import ServiceProcess, Services, migrate

__all__ = [
    "Engine",
    "KafkaCluster",
    "Link",
    "Ports",
    "ServiceProcess",
    "Services",
    "Stack",
    "StackError",
    "free_port",
    "migrate",
]
