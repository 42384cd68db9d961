"""That `make lint-contract`, which guards clients in the field, sees what it is there to see."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    """A copy of the contract's folder, to change."""
    for proto in (REPOSITORY / "protos/coupon/v1").glob("*.proto"):
        (tmp_path / "coupon/v1").mkdir(parents=True, exist_ok=True)
        shutil.copy(proto, tmp_path / "coupon/v1")
    return tmp_path


def check(contract: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "lint-contract", f"CONTRACT={contract}"]
    return subprocess.run(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False
    )


def edit(contract: Path, file: str, old: str, new: str) -> None:
    path = contract / "coupon/v1" / file
    text = path.read_text()
    assert text.count(old) == 1, f"{file} has no single {old!r} any more"
    path.write_text(text.replace(old, new))


def test_contract_as_it_is_passes(contract: Path) -> None:
    done = check(contract)
    assert done.returncode == 0, done.stdout


def test_new_field_and_new_method_break_nobody(contract: Path) -> None:
    edit(contract, "issuer.proto", "  bool wait = 4;\n", "  bool wait = 4;\n  string channel = 5;\n")
    rpc = "  rpc GetIssuance(GetIssuanceRequest) returns (Issuance);\n"
    edit(contract, "issuer.proto", rpc, rpc + rpc.replace("rpc GetIssuance", "rpc LookUpIssuance"))
    done = check(contract)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("issuer.proto", "  bool wait = 4;\n", "", 'field "4" with name "wait"'),
        ("issuer.proto", "bool wait = 4;", "int32 wait = 4;", 'changed type from "bool" to "int32"'),
        ("coupon.proto", "SOLD_OUT = 4;", "EXHAUSTED = 4;", 'changed name from "SOLD_OUT" to "EXHAUSTED"'),
        (
            "coupon.proto",
            "  rpc CloseCoupon(CloseCouponRequest) returns (Coupon);\n",
            "",
            'RPC "CloseCoupon" on service "CouponService" was deleted',
        ),
    ],
    ids=["field removed", "type changed", "enum value renamed", "method removed"],
)
def test_change_that_breaks_released_clients_is_refused(
    contract: Path, file: str, old: str, new: str, complaint: str
) -> None:
    edit(contract, file, old, new)
    done = check(contract)
    assert done.returncode != 0
    assert complaint in done.stdout, done.stdout
    assert "breaks clients of the last release" in done.stdout


def test_name_against_the_style_is_refused(contract: Path) -> None:
    edit(contract, "issuer.proto", "  bool wait = 4;\n", "  bool wait = 4;\n  string someField = 5;\n")
    done = check(contract)
    assert done.returncode != 0
    assert '"someField" should be lower_snake_case' in done.stdout, done.stdout
