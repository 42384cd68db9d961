"""Prometheus with our rules, where it is installed (Debian: package `prometheus`)."""

import json
import shutil
import signal
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from stack import ports
from stack.engine import Engine
from stack.errors import StackError
from stack.locations import REPOSITORY
from stack.process import Child, spawn
from stack.services import environment

RULES: Final = REPOSITORY / "deploy/observability/rules"
NOT_INSTALLED: Final = "prometheus is not installed: apt-get install prometheus (or use compose.yaml)"
_TIMEOUT_S: Final = 10


def installed() -> str | None:
    """The path of the program, or None."""
    return shutil.which("prometheus")


class Prometheus(Engine):
    """Scrapes the services and evaluates the rules; its data are in `folder`, which it may use alone."""

    name = "Prometheus"
    stop_signal = signal.SIGTERM
    stop_timeout_s = 10.0
    ready_timeout_s = 30.0

    def __init__(
        self,
        folder: Path,
        port: int,
        targets: Mapping[str, Sequence[int]],
        *,
        interval_s: int = 5,
        rules: Path = RULES,
        log_path: Path | None = None,
    ) -> None:
        """`targets`: the metrics' ports on 127.0.0.1 by job. `rules`: the folder of the rule files."""
        super().__init__(port, log_path or folder / "prometheus.log")
        self._folder = folder
        self._config = {
            "global": {"scrape_interval": f"{interval_s}s", "evaluation_interval": f"{interval_s}s"},
            "rule_files": [f"{rules}/*.yaml"],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [f"{ports.HOST}:{port}" for port in listed]}]}
                for job, listed in targets.items()
            ],
        }

    def spawn(self) -> Child:
        """Raises StackError if it is not installed."""
        program = installed()
        if program is None:
            raise StackError(NOT_INSTALLED)
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "prometheus.json"
        config.write_text(json.dumps(self._config))  # JSON is YAML, too
        return spawn(
            [
                *(program, f"--config.file={config}", f"--storage.tsdb.path={self._folder / 'data'}"),
                *(f"--web.listen-address={self.address}", "--storage.tsdb.retention.time=2d"),
            ],
            name=self.name,
            log_path=self.log_path,
            env=environment({}),
            cwd=self._folder,
            background=True,
        )

    def answers(self) -> bool:
        try:
            self._get("/-/ready")
        except (OSError, ValueError):
            return False
        return True

    def query(self, promql: str) -> list[dict[str, Any]]:
        """The vector of an instant query: `metric` (labels) and `value` (time, text) each. Raises StackError."""
        try:
            answer = json.loads(self._get(f"/api/v1/query?{urllib.parse.urlencode({'query': promql})}"))
        except urllib.error.HTTPError as error:
            raise StackError(f"{promql}: {error.read().decode(errors='replace')}") from error
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def _get(self, path: str) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.address}{path}", timeout=_TIMEOUT_S) as answer:
            body: bytes = answer.read()
        return body
