"""No bug: the control."""

from tests.system.planted import launch

if __name__ == "__main__":
    launch.issuer()
