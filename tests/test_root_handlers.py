"""A root logger without handlers gets none from libraries, and a warning is shown once."""

import io
import logging

from xmodal_jax.terminal import handlers_kept

LOG = logging.getLogger("xmodal_jax.tests.handlers")


def bare(monkeypatch, *handlers):
    """The root logger with some handlers, without those that pytest gives it for a test's call."""
    found = logging.getLogger()
    monkeypatch.setattr(found, "handlers", [*handlers])
    return found


def test_a_warning_is_shown_once_where_nobody_listens(capsys, monkeypatch):
    root = bare(monkeypatch)
    with handlers_kept(), handlers_kept():  # as two threads would hold one each
        LOG.warning("seen once")
        LOG.info("too quiet")
        assert len(root.handlers) == 2, "so that absl and orbax add none"
    assert capsys.readouterr().err == "seen once\n" and root.handlers == []


def test_a_programs_own_handler_shows_it_alone(capsys, monkeypatch):
    heard = io.StringIO()
    bare(monkeypatch)
    monkeypatch.setattr(logging.getLogger("xmodal_jax"), "handlers", [logging.StreamHandler(heard)])
    with handlers_kept():
        LOG.warning("once")
        logging.getLogger("others").warning("elsewhere")
    assert heard.getvalue() == "once\n" and capsys.readouterr().err == "elsewhere\n"


def test_a_root_handler_stays_the_only_one(capsys, monkeypatch):
    own = logging.NullHandler()
    root = bare(monkeypatch, own)
    with handlers_kept():
        LOG.warning("taken")
        assert root.handlers == [own]
    assert root.handlers == [own] and capsys.readouterr().err == ""
