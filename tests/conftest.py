"""Settings of the whole suite: a run is the same as the one before it."""

import signal

import pytest
from hypothesis import settings

from ringhaul import compiled

# A shell that starts the suite in the background has SIGINT ignored: tests of Ctrl-C would wait
# for ever for an interrupt that never comes.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No flakes: the same examples in every run, and no failure for a slow machine.
settings.register_profile("same_every_run", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile("same_every_run")


@pytest.fixture(autouse=True)
def numpy_alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are not compiled beside tests that are not about them, nor left to the next."""
    if request.path.parent.name != "compiled":
        monkeypatch.setattr(compiled, "start", lambda: None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seeds",
        type=int,
        default=100,
        help="simulated runs per test marked `seeds` that takes a `seed` (default: 100)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests marked `seeds` their seeds, 0 to --seeds, unless they name their own."""
    marks = [mark.name for mark in metafunc.definition.iter_markers()]
    if "seed" in metafunc.fixturenames and "seeds" in marks and "parametrize" not in marks:
        metafunc.parametrize("seed", range(metafunc.config.getoption("seeds")))
