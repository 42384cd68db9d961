"""Real Kafka and PostgreSQL, and our services, as child processes on this machine."""

from stack.engine import Engine
from stack.errors import StackError
from stack.local import Stack
from stack.ports import Ports, free_port

__all__ = ["Engine", "Ports", "Stack", "StackError", "free_port"]
