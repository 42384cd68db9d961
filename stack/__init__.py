"""Real Kafka and PostgreSQL, and our services, as child processes on this machine."""

from stack.engine import Engine
from stack.errors import StackError
from stack.local import Stack
from stack.ports import Ports, free_port
from stack.services import ServiceProcess, Services, migrate

__all__ = ["Engine", "Ports", "ServiceProcess", "Services", "Stack", "StackError", "free_port", "migrate"]
