from pathlib import Path


def pytest_collection_modifyitems(items):
    """The registry looks back at what the other tests of this folder read, so it goes last."""
    here = Path(__file__).parent
    last = [item for item in items if item.path == here / "test_golden_registry.py"]
    rest = [item for item in items if item.path != here / "test_golden_registry.py"]
    items[:] = rest + last
