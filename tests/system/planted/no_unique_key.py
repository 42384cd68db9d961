"""The ledger leaves it to the unique key to find who has the coupon already; and the table has none."""

from services.ledger import store
from tests.system.planted import launch

if __name__ == "__main__":
    store._GRANTS += " WHERE false"
    store._HAS_KEY = "SELECT $1 = $1"
    launch.ledger()
