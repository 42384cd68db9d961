"""All that the services do, done with the rights that production gives them and no more.

Kafka by TLS, where each shows a certificate and may do what its KafkaUser of deploy/k8s says; PostgreSQL by passwords,
where each has the role that the migrations make.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.protocol.admin import CreateAclsRequest
from coupon.v1 import (
    coupon_pb2,
    coupon_pb2_grpc,
    dead_letter_pb2,
    dead_letter_pb2_grpc,
    issuer_pb2,
    issuer_pb2_grpc,
    replay_pb2,
    replay_pb2_grpc,
)

from checker import verify
from demo.garbage import make_garbage, put_garbage
from migrations.database import upgrade
from migrations.roles import RIGHTS, Roles
from migrations.waiting import MigrationError
from services.runtime.schema import metadata
from stack import Services, free_port
from stack.kafka import Kafka
from stack.locations import temporary_folder
from stack.postgres import Postgres
from stack.services import migrate
from tests.certificates import Authority
from tests.contract.issuing import eventually
from tests.contract.issuing import request_id as new_uuid
from tests.deploy.manifests import KUBECTL, of_kind

PREFIX = "firstcome_"
PARTITIONS = 2
LINE = "coupon.issue-requests.v1"
REPLAYED = "coupon.replayed.test"
PATIENCE_S = 30
REFUSALS = ("permission denied", "InsufficientPrivilege", "AuthorizationFailed", "AuthorizationException")

# As Kafka's protocol numbers them.
RESOURCES = {"topic": 2, "group": 3}
PATTERNS = {"literal": 3, "prefix": 4}
OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}
ALLOW = 3

pytestmark = [
    pytest.mark.skipif(KUBECTL is None, reason="there is no kubectl: THE RIGHTS of deploy/k8s were not tested"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl: TLS TO KAFKA was not tested"),
]


class GuardedKafka(Kafka):
    """Also listens with TLS, on `tls_port`, to clients that show a certificate, and lets each do what it may."""

    def __init__(self, folder: Path, port: int, tls_port: int, authority: Authority) -> None:
        super().__init__(folder, port)
        self._server_settings = folder / "server.properties"
        self.tls_address = f"127.0.0.1:{tls_port}"
        certificate, key = authority.sign("broker", "IP:127.0.0.1")
        self._keystore = Path(certificate).with_name("broker.keystore.pem")
        self._keystore.write_text(Path(key).read_text() + Path(certificate).read_text())
        self._authority = authority.path

    def _write_settings(self) -> None:
        super()._write_settings()
        lines = self._server_settings.read_text().splitlines()
        said = dict(line.split("=", 1) for line in lines)
        for name in ("listeners", "advertised.listeners"):
            said[name] += f",SSL://{self.tls_address}"
        said["listener.security.protocol.map"] += ",SSL:SSL"
        said |= {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # The plain listener is the broker's own, and this test's.
            "super.users": "User:ANONYMOUS",
            "ssl.client.auth": "required",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self._keystore),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self._authority,
            "ssl.principal.mapping.rules": "RULE:^CN=([^,]+).*$/$1/",
        }
        self._server_settings.write_text("".join(f"{name}={value}\n" for name, value in said.items()))


@dataclass(frozen=True, slots=True)
class Guarded:
    kafka: GuardedKafka
    postgres: Postgres
    authority: Authority
    passwords: Path

    def of(self, who: str) -> dict[str, str]:
        """What `who` needs to log in to Kafka."""
        certificate, key = self.authority.sign(f"kafka-{who}")
        return {
            "FIRSTCOME_KAFKA_BOOTSTRAP": self.kafka.tls_address,
            "FIRSTCOME_KAFKA_TLS_CA": self.authority.path,
            "FIRSTCOME_KAFKA_TLS_CERT": certificate,
            "FIRSTCOME_KAFKA_TLS_KEY": key,
        }

    def dsn(self, role: str) -> str:
        return self.postgres.dsn.replace("//firstcome@", f"//{PREFIX}{role}@")

    def password(self, role: str) -> str:
        return (self.passwords / role).read_text()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = temporary_folder()
    try:
        authority = Authority(tmp_path_factory.mktemp("authority"))
        kafka = GuardedKafka(folder / "kafka", free_port(), free_port(), authority)
        (folder / "hba.conf").write_text(
            "host all firstcome 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )
        settings = {"hba_file": str(folder / "hba.conf")}
        postgres = Postgres(folder / "pg", free_port(), shared_buffers="32MB", settings=settings, lasting=False)
        passwords = tmp_path_factory.mktemp("passwords")
        for role in RIGHTS:
            (passwords / role).write_text(f"it's {role}'s \\ own %s")
        for engine in (kafka, postgres):
            engine.prepare()
            engine.start()
        for engine in (kafka, postgres):
            engine.wait_ready()
        yield Guarded(kafka, postgres, authority, passwords)
        for engine in (kafka, postgres):
            engine.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def allow(bootstrap: str) -> None:
    """What the KafkaUsers of the production overlay say."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        for user in of_kind("prod", "KafkaUser"):
            for acl in user["spec"]["authorization"]["acls"]:
                resource = acl["resource"]
                what = RESOURCES[resource["type"]], resource["name"], PATTERNS[resource.get("patternType", "literal")]
                for operation in acl["operations"]:
                    principal = f"User:{user['metadata']['name']}"
                    request = CreateAclsRequest(*what, principal, "*", OPERATIONS[operation], ALLOW)
                    answer = await admin._send_request(request)
                    assert [code for code, _ in answer.creation_responses] == [0]
    finally:
        await admin.close()


@asynccontextmanager
async def channel_to(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


async def test_the_rights_of_production_are_enough(guarded: Guarded, tmp_path: Path) -> None:
    await allow(guarded.kafka.address)
    roles = {
        "FIRSTCOME_POSTGRES_ROLE_PREFIX": PREFIX,
        "FIRSTCOME_POSTGRES_ROLE_PASSWORDS": str(guarded.passwords),
    }
    await asyncio.to_thread(
        migrate,
        guarded.kafka.tls_address,
        guarded.postgres.dsn,
        partitions=PARTITIONS,
        env=guarded.of("migrations") | roles,
    )
    services = Services("unused:1", "unused", log_dir=tmp_path)
    for name, process in services.processes.items():
        own = {**guarded.of(name), "FIRSTCOME_POSTGRES_DSN": guarded.dsn(name), "PGPASSWORD": guarded.password(name)}
        for variable, value in own.items():
            process.set(variable, value)
    try:
        for process in services.processes.values():
            await asyncio.to_thread(process.start)
        for process in services.processes.values():
            await asyncio.to_thread(process.wait_ready)
        await _use_everything(services, guarded.kafka.address)
        report = await verify(guarded.kafka.address, guarded.postgres.dsn, drain_timeout_s=PATIENCE_S)
        assert not report.broken, report.broken
    finally:
        await asyncio.to_thread(services.stop)
    for name in services.processes:
        said = (tmp_path / f"{name}.log").read_text()
        assert not [line for line in said.splitlines() if any(refusal in line for refusal in REFUSALS)]


async def _use_everything(services: Services, bootstrap: str) -> None:
    """Sell, park, retry, discard, and one replay job of each kind."""
    async with channel_to(services.issuer_address) as issuer, channel_to(services.dlq_address) as dlq:
        coupons: Any = coupon_pb2_grpc.CouponServiceStub(issuer)
        wanted = coupon_pb2.CreateCouponRequest(
            coupon_id="guarded", coupon=coupon_pb2.Coupon(display_name="Guarded", total_quantity=2)
        )
        coupon = await coupons.CreateCoupon(wanted)
        buying: Any = issuer_pb2_grpc.IssuerServiceStub(issuer)
        ask = issuer_pb2.IssueCouponRequest(coupon=coupon.name, user_id="ann", wait=True)
        issued = await buying.IssueCoupon(ask)
        name = f"{coupon.name}/issuances/ann"
        assert (await buying.GetIssuance(issuer_pb2.GetIssuanceRequest(name=name))).ticket == issued.ticket
        partition = int(coupon.etag.partition("-")[0])
        garbage = make_garbage("guarded", partition, PARTITIONS)
        await put_garbage(bootstrap, LINE, garbage, 0.1)

        letters: Any = dead_letter_pb2_grpc.DeadLetterServiceStub(dlq)
        every = dead_letter_pb2.ListDeadLettersRequest(page_size=100)

        async def all_filed() -> bool:
            return len((await letters.ListDeadLetters(every)).dead_letters) == len(garbage)

        await eventually(all_filed)
        found = (await letters.ListDeadLetters(every)).dead_letters
        await letters.RetryDeadLetter(dead_letter_pb2.RetryDeadLetterRequest(name=found[0].name, request_id=new_uuid()))
        await letters.DiscardDeadLetter(
            dead_letter_pb2.DiscardDeadLetterRequest(name=found[1].name, request_id=new_uuid(), comment="garbage")
        )

        async def failed_again() -> bool:
            again = dead_letter_pb2.GetDeadLetterRequest(name=found[0].name)
            return bool((await letters.GetDeadLetter(again)).attempt_count == 2)

        await eventually(failed_again)

        await _create_topic(bootstrap, REPLAYED)
        replays: Any = replay_pb2_grpc.ReplayServiceStub(dlq)
        job = replay_pb2.ReplayJob
        for wish in (
            job(kind=job.REDRIVE, dead_letters=dead_letter_pb2.DeadLetterFilter(state="PARKED", coupon_id="guarded")),
            job(kind=job.AUDIT),
            job(kind=job.REPUBLISH, target_topic=REPLAYED),
        ):
            asked = replay_pb2.CreateReplayJobRequest(replay_job=wish, request_id=new_uuid())
            made = await replays.CreateReplayJob(asked)
            async with asyncio.timeout(PATIENCE_S):
                while made.state in (job.PENDING, job.RUNNING):
                    await asyncio.sleep(0.1)
                    made = await replays.GetReplayJob(replay_pb2.GetReplayJobRequest(name=made.name))
            assert made.state == job.SUCCEEDED, made


async def _create_topic(bootstrap: str, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        answer = await admin.create_topics([NewTopic(name, PARTITIONS, 1)])
        assert [error[1] for error in answer.topic_errors] == [0]
    finally:
        await admin.close()


async def test_a_role_may_do_what_its_service_does_and_no_more(guarded: Guarded) -> None:
    soon = time.monotonic() + PATIENCE_S
    await upgrade(guarded.postgres.dsn, soon, Roles(PREFIX, str(guarded.passwords)))
    await upgrade(guarded.postgres.dsn, soon, Roles(PREFIX, None))
    with pytest.raises(MigrationError, match="There is no role other_issuer"):
        await upgrade(guarded.postgres.dsn, soon, Roles("other_", None))
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(guarded.dsn("issuer"), password="another")
    tables = {table.name for table in metadata.sorted_tables} | {"alembic_version"}
    assert {table for rights in RIGHTS.values() for table in rights} | {"alembic_version"} == tables
    for service, rights in RIGHTS.items():
        connection = await asyncpg.connect(guarded.dsn(service), password=guarded.password(service))
        try:
            for table in tables:
                allowed = rights.get(table, frozenset({"SELECT"} if table == "alembic_version" else ()))
                for kind, statement in {
                    "SELECT": f"SELECT * FROM {table} LIMIT 0",
                    "INSERT": f"INSERT INTO {table} SELECT * FROM {table} WHERE false",
                    "UPDATE": f"UPDATE {table} SET {_a_column(table)} = {_a_column(table)} WHERE false",
                    "DELETE": f"DELETE FROM {table} WHERE false",
                    "TRUNCATE": f"TRUNCATE {table}",
                }.items():
                    if kind in allowed:
                        await connection.execute(statement)
                    else:
                        with pytest.raises(asyncpg.InsufficientPrivilegeError):
                            await connection.execute(statement)
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute("CREATE TABLE mine ()")
        finally:
            await connection.close()


def _a_column(table: str) -> str:
    return "version_num" if table == "alembic_version" else list(metadata.tables[table].columns)[-1].name
