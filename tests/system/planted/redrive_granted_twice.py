"""The ledger does not look which dead letters have been redriven before."""

from services.ledger import store
from tests.system.planted import launch

if __name__ == "__main__":
    store._REDRIVEN = store._REDRIVEN.replace("redrive_of = ANY", "false AND redrive_of = ANY")
    launch.ledger()
